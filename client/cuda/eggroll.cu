#include "client/cuda/eggroll.h"

#include <algorithm>

namespace tributary::client {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 32;  // of one thread: the signs of a column of A for them are one word
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr uint32_t kMaxRank = 32;

// Without an index that only the running program knows: that would put the words into memory.
__device__ __forceinline__ uint32_t WordOf(const PhiloxWords& words, uint64_t index) {
  const uint32_t low = (index & 1) != 0 ? words.word[1] : words.word[0], high = (index & 1) != 0 ? words.word[3] : words.word[2];
  return (index & 2) != 0 ? high : low;
}

// A warp has 32 columns (one a lane) of 32 rows. A member and rank cost it two Philox calls, the same in all lanes, for 1024 entries.
__global__ void __launch_bounds__(kThreads) UpdateKernel(const __grid_constant__ EggrollLayer layer, const EggrollMember* members, int64_t count, float step, float* weights,
                                                         int64_t column_groups, int64_t row_groups) {
  const int lane = threadIdx.x % 32;
  for (int64_t tile = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; tile < column_groups * row_groups; tile += int64_t{gridDim.x} * kWarps) {
    const int64_t column_group = tile % column_groups, row_group = tile / column_groups;
    int64_t sum[kRows] = {};
    for (int64_t i = 0; i < count; ++i) {
      const EggrollMember member = members[i];
      for (uint32_t k = 0; k < layer.rank; ++k) {
        const uint32_t a = WordOf(EggrollSigns(layer, member.member, k, 0, static_cast<uint64_t>(row_group / 4)), static_cast<uint64_t>(row_group));
        const uint32_t b = WordOf(EggrollSigns(layer, member.member, k, 1, static_cast<uint64_t>(column_group / 4)), static_cast<uint64_t>(column_group));
        const uint32_t differ = (b >> lane & 1u) != 0 ? ~a : a;  // bit of a row: whether the product is −1
#pragma unroll
        for (int row = 0; row < kRows; ++row) sum[row] += (differ >> row & 1u) != 0 ? -member.weight : member.weight;
      }
    }
    const int64_t column = column_group * 32 + lane;
    if (column >= static_cast<int64_t>(layer.columns)) continue;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int64_t at = row_group * kRows + row;
      if (at >= static_cast<int64_t>(layer.rows)) break;
      float* weight = weights + at * static_cast<int64_t>(layer.columns) + column;
      *weight = __fmaf_rn(step, static_cast<float>(sum[row]), *weight);
    }
  }
}

// A block a row of the batch. First warp k sums Bᵀ·x of rank k (and k + 8, …), then all threads share the rows.
__global__ void __launch_bounds__(kThreads) ForwardKernel(const __grid_constant__ EggrollForwardWork work) {
  __shared__ double inner[kMaxRank];
  const EggrollLayer& layer = work.layer;
  const int lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x; row < work.batch; row += gridDim.x) {
    const uint32_t member = work.member[row];
    const float* x = work.x + row * static_cast<int64_t>(layer.columns);
    for (uint32_t k = threadIdx.x / 32; k < layer.rank; k += kWarps) {
      double sum = 0;
      for (uint64_t group = 0; group * 128 < layer.columns; ++group) {
        const PhiloxWords words = EggrollSigns(layer, member, k, 1, group);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const uint64_t column = group * 128 + 32 * word + lane;
          if (column < layer.columns) sum = __dadd_rn(sum, static_cast<double>((words.word[word] >> lane & 1u) != 0 ? -x[column] : x[column]));
        }
      }
#pragma unroll
      for (int half = 16; half > 0; half /= 2) sum = __dadd_rn(sum, __shfl_down_sync(kAllLanes, sum, half));
      if (lane == 0) inner[k] = sum;
    }
    __syncthreads();
    float* y = work.y + row * static_cast<int64_t>(layer.rows);
    for (uint64_t at = threadIdx.x; at < layer.rows; at += kThreads) {
      double sum = 0;
      for (uint32_t k = 0; k < layer.rank; ++k) {
        const uint32_t word = WordOf(EggrollSigns(layer, member, k, 0, at / 128), at / 32);
        sum = __dadd_rn(sum, (word >> (at % 32) & 1u) != 0 ? -inner[k] : inner[k]);
      }
      y[at] = __fmaf_rn(work.scale[row], static_cast<float>(sum), y[at]);
    }
    __syncthreads();
  }
}

bool Valid(const EggrollLayer& layer) { return layer.rank >= 1 && layer.rank <= kMaxRank && layer.rows >= 1 && layer.columns >= 1; }

}  // namespace

cudaError_t LaunchEggrollUpdate(const EggrollLayer& layer, const EggrollMember* members, int64_t count, float step, float* weights, cudaStream_t stream) {
  if (!Valid(layer) || count < 0 || weights == nullptr || (count > 0 && members == nullptr)) return cudaErrorInvalidValue;
  const auto column_groups = static_cast<int64_t>((layer.columns + 31) / 32), row_groups = static_cast<int64_t>((layer.rows + kRows - 1) / kRows);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((column_groups * row_groups + kWarps - 1) / kWarps, 8 * 132));
  UpdateKernel<<<blocks, kThreads, 0, stream>>>(layer, members, count, step, weights, column_groups, row_groups);
  return cudaGetLastError();
}

cudaError_t LaunchEggrollForward(const EggrollForwardWork& work, cudaStream_t stream) {
  if (!Valid(work.layer) || work.batch < 0) return cudaErrorInvalidValue;
  if (work.batch == 0) return cudaSuccess;
  ForwardKernel<<<static_cast<unsigned>(std::min<int64_t>(work.batch, 65535)), kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace tributary::client
