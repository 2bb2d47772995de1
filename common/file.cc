#include "common/file.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "common/ids.h"

namespace tributary {
namespace {

absl::Status FileError(const std::filesystem::path& path, std::string_view call) {
  return ErrnoStatus(errno, fmt::format("{}: {}", path.string(), call));
}

absl::StatusOr<UniqueFd> OpenForReading(const std::filesystem::path& path, struct stat* info) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return FileError(path, "open");
  if (::fstat(fd.get(), info) != 0) return FileError(path, "fstat");
  if (S_ISDIR(info->st_mode)) return InvalidArgument("{}: expected a file, got a directory", path.string());
  return fd;
}

absl::Status WriteAll(const std::filesystem::path& path, int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return FileError(path, "write");
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

std::filesystem::path FolderOf(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

std::filesystem::path HomeDir() {
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') return home;
  if (const passwd* entry = ::getpwuid(::getuid()); entry != nullptr && entry->pw_dir != nullptr) return entry->pw_dir;
  return "/";
}

// XDG: a value that is not absolute is to be ignored.
std::filesystem::path XdgDir(const char* variable, const char* fallback) {
  const char* value = std::getenv(variable);
  if (value != nullptr && *value == '/') return std::filesystem::path(value) / "tributary";
  return HomeDir() / fallback / "tributary";
}

}  // namespace

absl::Status SyncFolder(const std::filesystem::path& folder) {
  UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return FileError(folder, "open");
  if (::fsync(fd.get()) != 0) return FileError(folder, "fsync");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, size_t max_bytes) {
  struct stat info {};
  TRIB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(path, &info));
  std::string content;
  if (S_ISREG(info.st_mode)) {
    if (static_cast<uint64_t>(info.st_size) > max_bytes) {
      return ResourceExhausted("{}: {} bytes, expected at most {}", path.string(), static_cast<uint64_t>(info.st_size),
                               max_bytes);
    }
    content.reserve(static_cast<size_t>(info.st_size));
  }
  // The size is only a hint: pipes have none and a file may grow meanwhile.
  size_t used = 0;
  while (true) {
    const size_t room = std::max<size_t>(content.capacity() - used, size_t{64} << 10);
    content.resize(used + room);
    const ssize_t n = ::read(fd.get(), content.data() + used, room);
    if (n < 0) {
      if (errno == EINTR) continue;
      return FileError(path, "read");
    }
    used += static_cast<size_t>(n);
    if (used > max_bytes) return ResourceExhausted("{}: more than {} bytes", path.string(), max_bytes);
    if (n == 0) break;
  }
  content.resize(used);
  return content;
}

absl::Status WriteFileAtomically(const std::filesystem::path& path, std::span<const std::byte> bytes, bool durable) {
  const std::filesystem::path folder = FolderOf(path);
  const std::filesystem::path temporary =
      folder / fmt::format(".{}.{}.tmp", path.filename().string(), RandomHex(6));
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return FileError(temporary, "open");
  absl::Status status = WriteAll(temporary, fd.get(), bytes);
  if (status.ok() && durable && ::fsync(fd.get()) != 0) status = FileError(temporary, "fsync");
  // close() may report a late write error (network file systems).
  if (::close(fd.Release()) != 0 && status.ok()) status = FileError(temporary, "close");
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) status = FileError(path, "rename");
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  return durable ? SyncFolder(folder) : absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::filesystem::path& path, std::string_view text, bool durable) {
  return WriteFileAtomically(path, std::as_bytes(std::span(text.data(), text.size())), durable);
}

absl::Status MakeDirectories(const std::filesystem::path& path) {
  if (path.empty()) return absl::OkStatus();
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) return absl::OkStatus();
    return AlreadyExists("{}: exists and is not a directory", path.string());
  }
  const std::filesystem::path parent = path.parent_path();
  if (parent != path) TRIB_RETURN_IF_ERROR(MakeDirectories(parent));
  // EEXIST: a trailing slash, or another process made it meanwhile.
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return FileError(path, "mkdir");
  return absl::OkStatus();
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::filesystem::path& path) {
  struct stat info {};
  TRIB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(path, &info));
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: expected a regular file", path.string());
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return MappedFile(nullptr, 0);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return FileError(path, "mmap");
  return MappedFile(static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

std::filesystem::path UserCacheDir() { return XdgDir("XDG_CACHE_HOME", ".cache"); }
std::filesystem::path UserDataDir() { return XdgDir("XDG_DATA_HOME", ".local/share"); }
std::filesystem::path UserConfigFile() { return XdgDir("XDG_CONFIG_HOME", ".config") / "config.yaml"; }

std::filesystem::path ExecutableDir() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::filesystem::path(".") : self.parent_path();
}

}  // namespace tributary
