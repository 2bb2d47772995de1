// What every caller of the kernels of client/cuda needs: the stream that LibTorch works on, and CUDA's errors as LibTorch's. Built with CUDA only.
// Threads: of one thread's current stream.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "client/cuda/cuda_status.h"  // and with it CUDA's runtime

namespace tributary::client {

inline cudaStream_t StreamOf(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return static_cast<cudaStream_t>(guard.getStreamNativeHandle(guard.getStream(device)));
}

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  TORCH_CHECK_WITH(OutOfMemoryError, error != cudaErrorMemoryAllocation, what, ": ", cudaGetErrorString(error));
  TORCH_CHECK(false, what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
}

}  // namespace tributary::client
