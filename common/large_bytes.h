// Byte vectors that hold a whole model or update: on huge pages where the system gives them on request, and not zeroed by resize(),
// because their makers write every byte. 44 MiB then cost 22 page faults instead of 11,000.
// Threads: as std::vector. Errors: std::bad_alloc as usual.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace tributary {

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
    void* const memory = ::operator new(bytes, std::align_val_t{kHugePage});
    ::madvise(memory, bytes, MADV_HUGEPAGE);  // a wish
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t count) {
    if (count * sizeof(T) < kHugePage) return std::allocator<T>().deallocate(memory, count);
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
