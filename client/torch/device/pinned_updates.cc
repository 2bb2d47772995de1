#include "client/torch/device/pinned_updates.h"

#include <unistd.h>

#include <mutex>

#include "client/cuda/device_memory.h"
#include "client/torch/device/kept_memory.h"

namespace tributary::client {
namespace {

void* GetPinned(size_t bytes) {
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) == cudaSuccess) return memory;
  static_cast<void>(cudaGetLastError());
  return nullptr;
}

void FreePinned(void* memory) { cudaFreeHost(memory); }

}  // namespace

void PinUpdates() {
  static std::once_flag once;
  std::call_once(once, [] {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return;
    const auto memory = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    // Never destroyed: vectors may go after everything else.
    large_memory_source.store(new KeptMemory(&GetPinned, &FreePinned, memory / 8), std::memory_order_release);
  });
}

}  // namespace tributary::client
