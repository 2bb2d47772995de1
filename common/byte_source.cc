#include "common/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace tributary {

absl::Status ByteSource::Read(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size() || out.size() > size() - offset) {
    return OutOfRange("expected at most {} bytes, got {} from {} on", size(), out.size(), offset);
  }
  return ReadWithin(offset, out);
}

absl::Status MemorySource::ReadWithin(uint64_t offset, std::span<std::byte> out) const {
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  return absl::OkStatus();
}

absl::StatusOr<FileSource> FileSource::Open(const std::filesystem::path& path) {
  // Not blocking: a FIFO would wait for its writer.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, fmt::format("{}: open", path.string()));
  return Of(std::move(fd), path.string());
}

absl::StatusOr<FileSource> FileSource::Of(UniqueFd fd, std::string name) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, fmt::format("{}: fstat", name));
  if (!S_ISREG(info.st_mode)) {
    return InvalidArgument("{}: expected a regular file, got {}", name, S_ISDIR(info.st_mode) ? "a directory" : "another kind");
  }
  return FileSource(std::move(fd), static_cast<uint64_t>(info.st_size), std::move(name));
}

absl::Status FileSource::ReadWithin(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t n = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, fmt::format("{}: read at {}", name_, offset));
    if (n == 0) return DataLoss("{}: expected {} bytes, it ends at {} by now", name_, size_, offset);
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status ForEachPiece(const ByteSource& source, size_t piece_bytes, const std::function<absl::Status(std::span<const std::byte>)>& sink) {
  std::vector<std::byte> piece(std::min<uint64_t>(piece_bytes, source.size()));
  for (uint64_t at = 0; at < source.size(); at += piece.size()) {
    const auto part = std::span(piece).first(std::min<uint64_t>(piece.size(), source.size() - at));
    TRIB_RETURN_IF_ERROR(source.Read(at, part));
    TRIB_RETURN_IF_ERROR(sink(part));
  }
  return absl::OkStatus();
}

}  // namespace tributary
