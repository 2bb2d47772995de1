// Anonymous shared memory by memfd, with the seals that make it safe to hand out. Bytes and rules: LAYOUT.md; dataplane.md §3.
//
// The functions own nothing: fds and mappings go to the caller. Threads: pure system calls, safe from any thread.
// Errors: errno's, naming the region; INVALID_ARGUMENT / PERMISSION_DENIED from CheckSealed.
#pragma once

#include <cstddef>
#include <span>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

// What an fd of each kind carries once it travels. Compared for equality: one seal too many is as wrong as one too few.
int DataSegmentSeals();   // SHRINK | GROW | FUTURE_WRITE | SEAL
int SharedRegionSeals();  // SHRINK | GROW | SEAL

struct MappedMemfd {
  UniqueFd fd;
  std::span<std::byte> bytes;
};
// Size, pages, read-write mapping, MADV_DONTFORK and then the seals, in this order.
absl::StatusOr<MappedMemfd> CreateSealedMemfd(const char* name, size_t bytes, int seals);

// The receiver's check, before any mapping: exactly these seals and exactly this size.
absl::Status CheckSealed(int fd, size_t announced_bytes, int seals);

// Maps a checked fd, page tables filled at once.
absl::StatusOr<std::span<std::byte>> MapShared(int fd, size_t bytes, bool writable);
void Unmap(std::span<const std::byte> bytes);

}  // namespace tributary::aggregator
