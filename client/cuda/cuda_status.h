// The one place where CUDA's error codes become Status: memory that is not there RESOURCE_EXHAUSTED, no usable device
// FAILED_PRECONDITION, all else INTERNAL; each with CUDA's name for it. Kernels and launchers return the code itself.
//   return CudaError(error, "launching {}", name);
//   TRIB_RETURN_IF_CUDA_ERROR(LaunchNorm(work, stream), "the norm of an update");
// Not for .cu files: they do without Abseil. Threads: pure but for CUDA's own last error, which is read.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "common/status.h"

namespace tributary::client {

template <typename... Arguments>
absl::Status CudaError(cudaError_t error, fmt::format_string<Arguments...> what, Arguments&&... arguments) {
  const std::string text = fmt::format("{}: {} ({})", fmt::format(what, std::forward<Arguments>(arguments)...), cudaGetErrorString(error), cudaGetErrorName(error));
  static_cast<void>(cudaGetLastError());  // or the next launch would report it again
  switch (error) {
    case cudaErrorMemoryAllocation: {
      size_t free = 0, total = 0;
      if (cudaMemGetInfo(&free, &total) != cudaSuccess) return ResourceExhausted("{}", text);
      return ResourceExhausted("{}; {} of the device's {} bytes are free", text, free, total);
    }
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDevice:
      return FailedPrecondition("{}", text);
    default:
      return Internal("{}", text);
  }
}

}  // namespace tributary::client

#define TRIB_RETURN_IF_CUDA_ERROR(expression, ...)                                                                    \
  do {                                                                                                                \
    if (const cudaError_t trib_error_ = (expression); trib_error_ != cudaSuccess) {                                   \
      return ::tributary::client::CudaError(trib_error_, __VA_ARGS__);                                          \
    }                                                                                                                 \
  } while (false)
