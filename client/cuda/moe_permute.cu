#include "client/cuda/moe_permute.h"

#include <cuda_bf16.h>

#include <algorithm>

namespace tributary::client {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// A block an expert: it walks all choices in order and numbers its own, so the order within an expert is the tokens'. The choices are a few
// hundred kilobytes, read from the cache once an expert.
__global__ void __launch_bounds__(kThreads) DispatchKernel(const __grid_constant__ MoeDispatch work) {
  __shared__ int64_t first;
  __shared__ int32_t of_warp[kWarps];
  const int expert = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    int64_t before = 0;
    for (int j = 0; j < expert; ++j) before += work.counts[j];
    first = before;
    work.offsets[expert] = before;
    if (expert == work.experts - 1) work.offsets[work.experts] = before + work.counts[expert];
  }
  __syncthreads();
  const int64_t choices = work.tokens * work.top_k;
  int64_t next = first;
  for (int64_t begin = 0; begin < choices; begin += kThreads) {
    const int64_t at = begin + threadIdx.x;
    const bool ours = at < choices && work.chosen[at] == expert;
    const uint32_t votes = __ballot_sync(kAllLanes, ours);
    if (lane == 0) of_warp[warp] = __popc(votes);
    __syncthreads();
    int32_t before = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += of_warp[w];
      all += of_warp[w];
    }
    if (ours) {
      const int64_t pair = next + before + __popc(votes & ((1u << lane) - 1));
      work.token[pair] = at / work.top_k;
      work.place[at] = static_cast<int32_t>(pair);
    }
    next += all;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) GatherKernel(const uint4* x, const int64_t* token, int64_t pairs, int64_t row, uint4* gathered) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pairs * row; i += int64_t{gridDim.x} * kThreads) {
    gathered[i] = x[token[i / row] * row + i % row];
  }
}

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void Put(float* to, float value) { *to = value; }
__device__ __forceinline__ void Put(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

template <typename T>
__global__ void __launch_bounds__(kThreads) CombineKernel(const __grid_constant__ MoeCombine work) {
  const T* y = static_cast<const T*>(work.y);
  T* out = static_cast<T*>(work.out);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work.tokens * work.width; i += int64_t{gridDim.x} * kThreads) {
    const int64_t token = i / work.width, column = i % work.width;
    float sum = 0;
    for (int k = 0; k < work.top_k; ++k) {
      const int64_t choice = token * work.top_k + k;
      sum = __fmaf_rn(work.gates == nullptr ? 1.0F : work.gates[choice], ToFloat(y[int64_t{work.place[choice]} * work.width + column]), sum);
    }
    Put(out + i, sum);
  }
}

// A warp a choice: lane l has columns l, l + 32, …; lanes are added in halves.
template <typename T>
__global__ void __launch_bounds__(kThreads) CombineBackwardKernel(const __grid_constant__ MoeCombineBackward work) {
  const T* dout = static_cast<const T*>(work.dout);
  const T* y = static_cast<const T*>(work.y);
  T* dy = static_cast<T*>(work.dy);
  const int lane = threadIdx.x % 32;
  const int64_t choices = work.tokens * work.top_k;
  for (int64_t choice = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; choice < choices; choice += int64_t{gridDim.x} * kWarps) {
    const int64_t from = choice / work.top_k * work.width, to = int64_t{work.place[choice]} * work.width;
    const float gate = work.gates[choice];
    float sum = 0;
    for (int64_t column = lane; column < work.width; column += 32) {
      const float d = ToFloat(dout[from + column]);
      sum = __fmaf_rn(d, ToFloat(y[to + column]), sum);
      Put(dy + to + column, __fmul_rn(gate, d));
    }
#pragma unroll
    for (int half = 16; half > 0; half /= 2) sum = __fadd_rn(sum, __shfl_down_sync(kAllLanes, sum, half));
    if (lane == 0) work.dgates[choice] = sum;
  }
}

unsigned BlocksFor(int64_t elements) { return static_cast<unsigned>(std::min<int64_t>((elements + kThreads - 1) / kThreads, 16 * 132)); }

}  // namespace

cudaError_t LaunchMoeDispatch(const MoeDispatch& work, cudaStream_t stream) {
  if (work.tokens < 0 || work.top_k < 1 || work.experts < 1 || work.experts > 1024 || work.tokens * work.top_k > INT32_MAX || work.counts == nullptr ||
      work.offsets == nullptr || (work.tokens > 0 && (work.chosen == nullptr || work.token == nullptr || work.place == nullptr))) {
    return cudaErrorInvalidValue;
  }
  DispatchKernel<<<static_cast<unsigned>(work.experts), kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

cudaError_t LaunchMoeGather(const void* x, const int64_t* token, int64_t pairs, size_t row_bytes, void* gathered, cudaStream_t stream) {
  if (pairs < 0 || row_bytes == 0 || row_bytes % 16 != 0) return cudaErrorInvalidValue;
  if (pairs == 0) return cudaSuccess;
  const auto row = static_cast<int64_t>(row_bytes / 16);
  GatherKernel<<<BlocksFor(pairs * row), kThreads, 0, stream>>>(static_cast<const uint4*>(x), token, pairs, row, static_cast<uint4*>(gathered));
  return cudaGetLastError();
}

cudaError_t LaunchMoeCombine(const MoeCombine& work, cudaStream_t stream) {
  if (work.tokens < 0 || work.top_k < 1 || work.width < 1) return cudaErrorInvalidValue;
  if (work.tokens == 0) return cudaSuccess;
  const unsigned blocks = BlocksFor(work.tokens * work.width);
  work.type == RowType::kF32 ? CombineKernel<float><<<blocks, kThreads, 0, stream>>>(work) : CombineKernel<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

cudaError_t LaunchMoeCombineBackward(const MoeCombineBackward& work, cudaStream_t stream) {
  if (work.tokens < 0 || work.top_k < 1 || work.width < 1) return cudaErrorInvalidValue;
  if (work.tokens == 0) return cudaSuccess;
  const unsigned blocks = BlocksFor(work.tokens * work.top_k * 32);
  work.type == RowType::kF32 ? CombineBackwardKernel<float><<<blocks, kThreads, 0, stream>>>(work)
                             : CombineBackwardKernel<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace tributary::client
