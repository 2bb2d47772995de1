// Files on disk, with the order of operations that survives a power cut. Threads: functions are safe from any thread as long
// as two do not write the same path.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary {

// Whole file. Refuses (RESOURCE_EXHAUSTED) files over `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, size_t max_bytes = size_t{1} << 32);

// Writes to a temporary name in the same folder, fsyncs, renames over `path`, fsyncs the folder. `path` either keeps its old
// content or has all of the new one. With `durable` false the two fsyncs are left out (the rename still is atomic).
absl::Status WriteFileAtomically(const std::filesystem::path& path, std::span<const std::byte> bytes, bool durable = true);
absl::Status WriteFileAtomically(const std::filesystem::path& path, std::string_view text, bool durable = true);

// Entries of the folder that were made, renamed or removed before last through a power cut.
absl::Status SyncFolder(const std::filesystem::path& folder);

// Creates `path` and its parents with mode 0700 where missing.
absl::Status MakeDirectories(const std::filesystem::path& path);

// A read-only mapping of a whole file; valid while the object lives. An empty file maps to an empty span.
// Another process that truncates the file meanwhile can raise SIGBUS: map only files this program owns.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Folders in XDG order for a person's files: $XDG_CACHE_HOME or ~/.cache, … each with "/tributary" added.
std::filesystem::path UserCacheDir();
std::filesystem::path UserDataDir();
std::filesystem::path UserConfigFile();

// Folder of the running executable (/proc/self/exe), where sibling programs are looked for.
std::filesystem::path ExecutableDir();

}  // namespace tributary
