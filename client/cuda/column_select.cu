// A block an expert. Four rounds, from the highest byte of the ordered bits down: count how many of the values that agree with what is
// known so far have each next byte, find the byte in which the rank falls, go on within it.
#include "client/cuda/column_select.h"

namespace tributary::client {
namespace {

constexpr int kThreads = 512;

__device__ __forceinline__ uint32_t OrderedBits(float value) {
  const uint32_t bits = __float_as_uint(isnan(value) ? -__int_as_float(0x7F800000) : value);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint32_t Key(const ColumnSelect& work, int64_t token, int expert) {
  float value = work.scores[token * work.experts + expert];
  if (work.bias != nullptr) value = __fadd_rn(value, work.bias[expert]);
  if (work.offset != nullptr) value = __fsub_rn(value, work.offset[token]);
  return OrderedBits(value);
}

__global__ void __launch_bounds__(kThreads) ColumnSelectKernel(const __grid_constant__ ColumnSelect work) {
  __shared__ uint32_t histogram[256];
  __shared__ uint32_t prefix;
  __shared__ int64_t rank;
  const int expert = blockIdx.x;
  if (threadIdx.x == 0) {
    prefix = 0;
    rank = work.rank;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin < 256; bin += kThreads) histogram[bin] = 0;
    __syncthreads();
    const uint32_t known = shift == 24 ? 0u : 0xFFFFFFFFu << (shift + 8);
    for (int64_t token = threadIdx.x; token < work.tokens; token += kThreads) {
      const uint32_t key = Key(work, token, expert);
      if ((key & known) == prefix) atomicAdd(&histogram[key >> shift & 0xFFu], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 255;
      while (bin > 0 && rank > histogram[bin]) rank -= histogram[bin--];
      prefix |= static_cast<uint32_t>(bin) << shift;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) work.selected[expert] = __uint_as_float(prefix >> 31 != 0 ? prefix & 0x7FFFFFFFu : ~prefix);
}

}  // namespace

cudaError_t LaunchColumnSelect(const ColumnSelect& work, cudaStream_t stream) {
  if (work.tokens < 1 || work.tokens > INT32_MAX || work.experts < 1 || work.rank < 1 || work.rank > work.tokens || work.scores == nullptr || work.selected == nullptr) {
    return cudaErrorInvalidValue;
  }
  ColumnSelectKernel<<<static_cast<unsigned>(work.experts), kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace tributary::client
