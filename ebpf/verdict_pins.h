// The folder in a private bpffs where a daemon pins its maps and its link, held by one daemon at a time. The folder belongs to us and
// has mode 0700; if no bpffs is there one is mounted (needs CAP_SYS_ADMIN) under the source name "tributary", by which Remove()
// knows that it may unmount it. A crash leaves the pins, the mount and no lock.
// Thread-compatible. Errors: FAILED_PRECONDITION when another process holds the folder or it is open to others; else errno's.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::ebpf {

class PinFolder {
 public:
  static absl::StatusOr<PinFolder> Open(const std::filesystem::path& path);

  std::string PathOf(std::string_view name) const { return (path_ / name).string(); }
  bool Has(std::string_view name) const;
  // Unlinks the pins of these names that are there. (The kernel keeps files of its own in a bpffs.)
  absl::Status Clear(std::span<const char* const> names);
  // Clear, and the mount too where it is ours.
  absl::Status Remove(std::span<const char* const> names);

 private:
  PinFolder(std::filesystem::path path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::filesystem::path path_;
  UniqueFd lock_;
};

}  // namespace tributary::ebpf
