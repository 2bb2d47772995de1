#include "ebpf/verdict_pins.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>

#include "common/file.h"

namespace tributary::ebpf {
namespace {

constexpr char kMountSource[] = "tributary";

absl::StatusOr<bool> IsBpfFs(const std::filesystem::path& path) {
  struct statfs info {};
  if (::statfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, fmt::format("pin folder '{}': statfs", path.string()));
  return static_cast<unsigned long>(info.f_type) == BPF_FS_MAGIC;
}

// Whether `path` is itself a mount of ours.
bool MountedByUs(const std::filesystem::path& path) {
  const std::string mounts = ReadFile("/proc/self/mounts", size_t{16} << 20).value_or("");
  std::istringstream lines(mounts);
  std::string source, target, rest;
  while (lines >> source >> target && std::getline(lines, rest)) {
    if (source == kMountSource && target == path.string()) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<PinFolder> PinFolder::Open(const std::filesystem::path& given) {
  TRIB_RETURN_IF_ERROR(MakeDirectories(given));
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(given, error);
  if (error) return ErrnoStatus(error.value(), fmt::format("pin folder '{}'", given.string()));
  TRIB_ASSIGN_OR_RETURN(const bool there, IsBpfFs(path));
  if (!there && ::mount(kMountSource, path.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0) {
    return ErrnoStatus(errno, fmt::format("pin folder '{}': mount a bpffs", path.string()));
  }
  UniqueFd lock(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid()) return ErrnoStatus(errno, fmt::format("pin folder '{}': open", path.string()));
  struct stat info {};
  if (::fstat(lock.get(), &info) != 0) return ErrnoStatus(errno, fmt::format("pin folder '{}': fstat", path.string()));
  if (info.st_uid != ::geteuid() || (info.st_mode & 077) != 0) {
    return FailedPrecondition("pin folder '{}': expected it to be ours (uid {}) with mode 0700, got uid {} and mode {:04o}", path.string(),
                              ::geteuid(), info.st_uid, info.st_mode & 07777);
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, fmt::format("pin folder '{}': lock", path.string()));
    return FailedPrecondition("pin folder '{}': another daemon holds it", path.string());
  }
  return PinFolder(path, std::move(lock));
}

bool PinFolder::Has(std::string_view name) const { return ::access(PathOf(name).c_str(), F_OK) == 0; }

absl::Status PinFolder::Clear(std::span<const char* const> names) {
  for (const char* name : names) {
    if (::unlink(PathOf(name).c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, fmt::format("pin '{}': remove", PathOf(name)));
  }
  return absl::OkStatus();
}

absl::Status PinFolder::Remove(std::span<const char* const> names) {
  TRIB_RETURN_IF_ERROR(Clear(names));
  if (!MountedByUs(path_)) return absl::OkStatus();
  lock_.Reset();  // an open fd on the mount would keep it busy
  if (::umount2(path_.c_str(), UMOUNT_NOFOLLOW) != 0) return ErrnoStatus(errno, fmt::format("pin folder '{}': unmount", path_.string()));
  return absl::OkStatus();
}

}  // namespace tributary::ebpf
