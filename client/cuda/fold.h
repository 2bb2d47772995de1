// Sums of updates on the GPU: sums[i] += Σ_j weight_j · delta_j[i], as FoldF32 and FoldFixedF32 (aggregator/core/kernels.h) make them, bit for
// bit: products and sums in double precision, each rounded, in the order of j; or 64-bit fixed point of 40 bits behind the point.
//
// Raw device pointers and a stream; nothing is allocated, nothing waits. Lifetime: deltas and sums until the stream is past the launch; the
// array of terms is copied. Threads: any. Errors: cudaErrorInvalidValue for what the comments below exclude; CUDA's own otherwise.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace tributary::client {

inline constexpr size_t kMaxFoldTerms = 128;  // of one launch

struct FoldTerm {
  const float* delta = nullptr;  // [elements]
  double weight = 0;
};

struct FoldWork {
  std::span<const FoldTerm> terms;  // at least 1
  size_t elements = 0;
  bool first = false;               // the sums hold nothing yet
  uint32_t* failed = nullptr;       // set to 1 where FoldF32 or FoldFixedF32 returns false; the caller zeroes it before
};

cudaError_t LaunchFold(const FoldWork& work, double* sums, cudaStream_t stream);
cudaError_t LaunchFoldFixed(const FoldWork& work, int64_t* sums, cudaStream_t stream);

}  // namespace tributary::client
