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

// For memory that is handed out and used again once nobody has it: the memfd is opened anew through procfs, which makes the kernel count
// its open files. Seals as DataSegmentSeals(). Where procfs is missing it is an ordinary sealed memfd, of which SoleUser is never true.
absl::StatusOr<MappedMemfd> CreateReusableMemfd(const char* name, size_t bytes);
// A read-only open file of its own, to be handed out.
absl::StatusOr<UniqueFd> OpenReadOnly(int fd);
// Whether no file opened by OpenReadOnly exists any more, in any process, as descriptor or mapping. Asks for a write lease, which the
// kernel grants in just this case. Raises SIGIO if somebody opens it this very moment: ignore that signal.
bool SoleUser(int fd);

// The receiver's check, before any mapping: exactly these seals and exactly this size.
absl::Status CheckSealed(int fd, size_t announced_bytes, int seals);

// Maps a checked fd, page tables filled at once.
absl::StatusOr<std::span<std::byte>> MapShared(int fd, size_t bytes, bool writable);
void Unmap(std::span<const std::byte> bytes);

}  // namespace tributary::aggregator
