#include "client/data/client_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "common/digest.h"
#include "common/file.h"
#include "common/unique_fd.h"

namespace tributary::client {
namespace {

constexpr size_t kDigestBytes = 16;

absl::Status FailedFileSystem(const std::filesystem::path& path, const std::error_code& error, std::string_view what) {
  return ErrnoStatus(error.value(), fmt::format("{}: {}", path.string(), what));
}

absl::Status SyncFolder(const std::filesystem::path& folder) {
  const UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || ::fsync(fd.get()) != 0) return ErrnoStatus(errno, fmt::format("{}: fsync", folder.string()));
  return absl::OkStatus();
}

// A job id comes from the server and becomes the name of a folder.
absl::Status CheckFolderName(const std::string& job) {
  if (!job.empty() && job != "." && job != ".." && job.find('/') == std::string::npos && job.find('\0') == std::string::npos) return absl::OkStatus();
  return InvalidArgument("client state: job '{}' cannot be the name of a folder", job);
}

}  // namespace

absl::StatusOr<std::vector<float>> StateFiles::Current(const std::string& job, const std::string& name) const {
  TRIB_RETURN_IF_ERROR(CheckFolderName(job));
  const std::filesystem::path path = folder_ / job / name;
  absl::StatusOr<std::string> content = ReadFile(path);
  if (absl::IsNotFound(content.status())) return std::vector<float>();
  if (!content.ok()) return content.status();
  const auto bytes = std::as_bytes(std::span(*content));
  if (bytes.size() < kDigestBytes || (bytes.size() - kDigestBytes) % sizeof(float) != 0 ||
      Xxh3Digest(bytes.subspan(kDigestBytes)) != content->substr(0, kDigestBytes)) {
    return DataLoss("{}: the bytes are not what was written", path.string());
  }
  std::vector<float> value((bytes.size() - kDigestBytes) / sizeof(float));
  std::memcpy(value.data(), bytes.data() + kDigestBytes, value.size() * sizeof(float));
  return value;
}

absl::Status StateFiles::Stage(const std::string& job, const std::string& name, const UpdateId& update, std::span<const float> value) const {
  TRIB_RETURN_IF_ERROR(CheckFolderName(job));
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder_ / job));
  const auto bytes = std::as_bytes(value);
  std::string content = Xxh3Digest(bytes);
  content.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return WriteFileAtomically(folder_ / job / fmt::format("{}.{}", name, ToHex(update)), content);
}

absl::Status StateFiles::Settle(const std::string& job, const UpdateId& update, bool promote) const {
  TRIB_RETURN_IF_ERROR(CheckFolderName(job));
  const std::string ending = "." + ToHex(update);
  std::error_code error;
  std::filesystem::directory_iterator files(folder_ / job, error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  if (error) return FailedFileSystem(folder_ / job, error, "list");
  bool any = false;
  for (const auto& file : files) {
    const std::string name = file.path().filename().string();
    if (name.size() <= ending.size() || !name.ends_with(ending)) continue;
    any = true;
    if (promote) {
      std::filesystem::rename(file.path(), folder_ / job / name.substr(0, name.size() - ending.size()), error);
    } else {
      std::filesystem::remove(file.path(), error);
    }
    if (error) return FailedFileSystem(file.path(), error, promote ? "rename" : "remove");
  }
  // A promotion must be on disk before the update leaves the outbox.
  return any && promote ? SyncFolder(folder_ / job) : absl::OkStatus();
}

absl::Status StateFiles::Promote(const std::string& job, const UpdateId& update) const { return Settle(job, update, true); }
absl::Status StateFiles::Discard(const std::string& job, const UpdateId& update) const { return Settle(job, update, false); }

absl::Status StateFiles::Sweep(const std::set<UpdateId>& kept) const {
  std::error_code error;
  std::filesystem::recursive_directory_iterator files(folder_, error);
  if (error == std::errc::no_such_file_or_directory) return absl::OkStatus();
  if (error) return FailedFileSystem(folder_, error, "list");
  for (const auto& file : files) {
    const std::string extension = file.path().extension().string();
    if (!file.is_regular_file() || extension.empty()) continue;
    const absl::StatusOr<UpdateId> update = UpdateIdFromHex(extension.substr(1));
    if (update.ok() && kept.contains(*update)) continue;
    std::filesystem::remove(file.path(), error);
    if (error) return FailedFileSystem(file.path(), error, "remove");
  }
  return absl::OkStatus();
}

}  // namespace tributary::client
