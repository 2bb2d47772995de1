// Byte vectors that hold a whole model or update: on huge pages where the system gives them on request, and not zeroed by resize(),
// because their makers write every byte. 44 MiB then cost 22 page faults instead of 11,000.
// Threads: as std::vector. Errors: std::bad_alloc as usual.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace tributary {

// Who has memory of his own for them: a process whose GPU copies into pinned memory four times as fast (client/torch/device/kept_memory.h).
// Threads: all calls from any thread.
class LargeMemorySource {
 public:
  virtual ~LargeMemorySource() = default;
  virtual void* Take(size_t bytes) = 0;  // aligned to 4096; null: from the system this time
  virtual bool Give(void* memory) = 0;   // back; false: not from here
};
// Set at most once, and never to go; null: everything is the system's.
inline std::atomic<LargeMemorySource*> large_memory_source{nullptr};

template <typename T>
class LargeAllocator {
 public:
  using value_type = T;
  LargeAllocator() = default;
  template <typename U>
  LargeAllocator(const LargeAllocator<U>&) {}  // NOLINT: allocators convert

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes < kHugePage) return std::allocator<T>().allocate(count);
    if (LargeMemorySource* const source = large_memory_source.load(std::memory_order_acquire)) {  // with the release of who set it
      if (void* const memory = source->Take(bytes)) return static_cast<T*>(memory);
    }
    void* const memory = ::operator new(bytes, std::align_val_t{kHugePage});
    ::madvise(memory, bytes, MADV_HUGEPAGE);  // a wish
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t count) {
    if (count * sizeof(T) < kHugePage) return std::allocator<T>().deallocate(memory, count);
    LargeMemorySource* const source = large_memory_source.load(std::memory_order_acquire);
    if (source != nullptr && source->Give(memory)) return;
    ::operator delete(memory, std::align_val_t{kHugePage});
  }
  // resize() constructs without a value: the memory stays as it is.
  template <typename U>
  void construct(U*) {}
  template <typename U, typename... Args>
  void construct(U* at, Args&&... args) {
    ::new (static_cast<void*>(at)) U(std::forward<Args>(args)...);
  }
  friend bool operator==(const LargeAllocator&, const LargeAllocator&) { return true; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
};

using LargeBytes = std::vector<std::byte, LargeAllocator<std::byte>>;

}  // namespace tributary
