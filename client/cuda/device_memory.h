// Memory of the current CUDA device, and pinned memory of the host, owned by scope.
//
// Errors: RESOURCE_EXHAUSTED (no such memory left, with what was asked for and what is free), INTERNAL (CUDA's, by name); cuda_status.h.
// Threads: thread-compatible. Frees wait for the device where CUDA does.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "client/cuda/cuda_status.h"

namespace tributary::client {

struct DeviceFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct PinnedFree {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};

template <typename T>
using DeviceArray = std::unique_ptr<T[], DeviceFree>;
template <typename T>
using PinnedArray = std::unique_ptr<T[], PinnedFree>;

// `count` elements, not initialised; at least one, so that the address is never null.
template <typename T>
absl::StatusOr<DeviceArray<T>> MakeDeviceArray(size_t count) {
  void* memory = nullptr;
  const size_t bytes = (count > 0 ? count : 1) * sizeof(T);
  if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) return CudaError(error, "{} bytes of device memory", bytes);
  return DeviceArray<T>(static_cast<T*>(memory));
}

template <typename T>
absl::StatusOr<PinnedArray<T>> MakePinnedArray(size_t count) {
  void* memory = nullptr;
  const size_t bytes = (count > 0 ? count : 1) * sizeof(T);
  if (const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault); error != cudaSuccess) {
    return CudaError(error, "{} bytes of pinned memory", bytes);
  }
  return PinnedArray<T>(static_cast<T*>(memory));
}

}  // namespace tributary::client
