#include "client/cuda/moe_permute.h"

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

__global__ void __launch_bounds__(kThreads) CombineKernel(const float* y, const float* gates, const int32_t* place, int64_t tokens, int top_k, int64_t width, float* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < tokens * width; i += int64_t{gridDim.x} * kThreads) {
    const int64_t token = i / width, column = i % width;
    float sum = 0;
    for (int k = 0; k < top_k; ++k) sum = __fmaf_rn(gates[token * top_k + k], y[int64_t{place[token * top_k + k]} * width + column], sum);
    out[i] = sum;
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

cudaError_t LaunchMoeCombine(const float* y, const float* gates, const int32_t* place, int64_t tokens, int top_k, int64_t width, float* out, cudaStream_t stream) {
  if (tokens < 0 || top_k < 1 || width < 1) return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  CombineKernel<<<BlocksFor(tokens * width), kThreads, 0, stream>>>(y, gates, place, tokens, top_k, width, out);
  return cudaGetLastError();
}

}  // namespace tributary::client
