#include "aggregator/store/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

namespace tributary::aggregator {

// Linux 5.1; glibc's header is older than the flag on some systems.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

int DataSegmentSeals() { return F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL; }
int SharedRegionSeals() { return F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL; }

namespace {

std::string ProcPath(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

absl::StatusOr<MappedMemfd> Create(const char* name, size_t bytes, int seals, bool reopen) {
  if (bytes == 0) return InvalidArgument("memfd '{}': expected a size > 0, got 0", name);
  MappedMemfd result;
  result.fd = UniqueFd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!result.fd.valid()) return ErrnoStatus(errno, fmt::format("memfd '{}': create", name));
  if (::ftruncate(result.fd.get(), static_cast<off_t>(bytes)) != 0) {
    return ErrnoStatus(errno, fmt::format("memfd '{}': set size {}", name, bytes));
  }
  // Take the pages now: a shortage is an error here, not a signal at the first touch.
  int error = 0;
  do {
    error = ::fallocate(result.fd.get(), 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error != 0) return ErrnoStatus(error, fmt::format("memfd '{}': reserve {} bytes", name, bytes));
  // A memfd's own descriptor is not in the kernel's count of writers; one that was opened is.
  if (UniqueFd opened(reopen ? ::open(ProcPath(result.fd.get()).c_str(), O_RDWR | O_CLOEXEC) : -1); opened.valid()) result.fd = std::move(opened);
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, result.fd.get(), 0);
  if (address == MAP_FAILED) return ErrnoStatus(errno, fmt::format("memfd '{}': map {} bytes", name, bytes));
  result.bytes = {static_cast<std::byte*>(address), bytes};
  absl::Status status;
  if (::madvise(address, bytes, MADV_DONTFORK) != 0) {
    status = ErrnoStatus(errno, fmt::format("memfd '{}': keep from forked children", name));
  } else if (::fcntl(result.fd.get(), F_ADD_SEALS, seals) != 0) {
    status = ErrnoStatus(errno, fmt::format("memfd '{}': seal", name));
  }
  if (!status.ok()) {
    Unmap(result.bytes);
    return status;
  }
  return result;
}

}  // namespace

absl::StatusOr<MappedMemfd> CreateSealedMemfd(const char* name, size_t bytes, int seals) { return Create(name, bytes, seals, false); }

absl::StatusOr<MappedMemfd> CreateReusableMemfd(const char* name, size_t bytes) { return Create(name, bytes, DataSegmentSeals(), true); }

absl::StatusOr<UniqueFd> OpenReadOnly(int fd) {
  UniqueFd opened(::open(ProcPath(fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened.valid()) return ErrnoStatus(errno, "memfd: open anew");
  return opened;
}

bool SoleUser(int fd) {
  if (::fcntl(fd, F_SETLEASE, F_WRLCK) != 0) return false;
  ::fcntl(fd, F_SETLEASE, F_UNLCK);
  return true;
}

absl::Status CheckSealed(int fd, size_t announced_bytes, int seals) {
  const int got = ::fcntl(fd, F_GET_SEALS);
  if (got < 0) return InvalidArgument("received fd {}: expected a sealed memfd, got a file without seals", fd);
  if (got != seals) return PermissionDenied("received memfd: expected seals {:#x}, got {:#x}", seals, got);
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "received memfd: fstat");
  if (announced_bytes == 0 || static_cast<uint64_t>(info.st_size) != announced_bytes) {
    return InvalidArgument("received memfd: expected {} bytes, got {}", announced_bytes, info.st_size);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<std::byte>> MapShared(int fd, size_t bytes, bool writable) {
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* address = ::mmap(nullptr, bytes, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (address == MAP_FAILED) return ErrnoStatus(errno, fmt::format("received memfd: map {} bytes", bytes));
  if (::madvise(address, bytes, MADV_DONTFORK) != 0) {
    const int error = errno;
    ::munmap(address, bytes);
    return ErrnoStatus(error, "received memfd: keep from forked children");
  }
  return std::span<std::byte>(static_cast<std::byte*>(address), bytes);
}

void Unmap(std::span<const std::byte> bytes) {
  if (bytes.data() != nullptr) ::munmap(const_cast<std::byte*>(bytes.data()), bytes.size());
}

}  // namespace tributary::aggregator
