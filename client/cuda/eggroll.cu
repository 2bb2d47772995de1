#include "client/cuda/eggroll.h"

#include <algorithm>

namespace tributary::client {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 32;  // of one thread: the signs of a column of A for them are one word
constexpr int kRowsAtOnce = 4;  // of a forward pass and a warp
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

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

__device__ __forceinline__ float WithSign(float x, uint32_t sign) { return __uint_as_float(__float_as_uint(x) ^ sign); }

// A warp has up to kRowsAtOnce rows of one member: Bᵀ·x by all lanes, rank by rank, then each lane every 32nd output. A Philox call, the same in all lanes and for
// all rows, has the signs of 128 entries.
__global__ void __launch_bounds__(kThreads) ForwardKernel(const __grid_constant__ EggrollForwardWork work) {
  __shared__ double inner_products[kWarps][kMaxEggrollForwardRank][kRowsAtOnce];
  const EggrollLayer& layer = work.weight;
  const int lane = threadIdx.x % 32;
  double(*const inner)[kRowsAtOnce] = inner_products[threadIdx.x / 32];
  const int64_t groups_of_member = (work.rows + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t turn = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; turn < work.members * groups_of_member; turn += int64_t{gridDim.x} * kWarps) {
    const auto member = static_cast<uint32_t>(work.first + turn / groups_of_member);
    const int64_t first_row = turn % groups_of_member * kRowsAtOnce, base_row = turn / groups_of_member * work.rows + first_row;
    const int rows = static_cast<int>(work.rows - first_row < kRowsAtOnce ? work.rows - first_row : kRowsAtOnce);
    const float scale = member % 2 == 0 ? work.scale : -work.scale;
    int64_t input[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) input[r] = (base_row + (r < rows ? r : 0)) % work.inputs;
    for (uint32_t k = 0; k < layer.rank; ++k) {
      double sum[kRowsAtOnce] = {};
      for (uint64_t group = 0; group * 128 < layer.columns; ++group) {
        const PhiloxWords words = EggrollSigns(layer, member / 2, k, 1, group);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const uint64_t column = group * 128 + 32 * word + lane;
          if (column >= layer.columns) continue;
          const uint32_t sign = words.word[word] >> lane << 31;
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r) {
            sum[r] = __dadd_rn(sum[r], static_cast<double>(WithSign(work.x[input[r] * static_cast<int64_t>(layer.columns) + static_cast<int64_t>(column)], sign)));
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
        for (int half = 16; half > 0; half /= 2) sum[r] = __dadd_rn(sum[r], __shfl_down_sync(kAllLanes, sum[r], half));
        if (lane == 0) inner[k][r] = sum[r];
      }
    }
    __syncwarp();
    for (uint64_t group = 0; group * 128 < layer.rows; ++group) {
      double sum[kRowsAtOnce][4] = {};
      int bias[4] = {};
      for (uint32_t k = 0; k < layer.rank; ++k) {
        const PhiloxWords words = EggrollSigns(layer, member / 2, k, 0, group), bias_words = EggrollSigns(work.bias, member / 2, k, 0, group);
        const uint32_t one = EggrollSigns(work.bias, member / 2, k, 1, 0).word[0];
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const bool minus = (words.word[word] >> lane & 1u) != 0;
          bias[word] += ((bias_words.word[word] >> lane ^ one) & 1u) != 0 ? -1 : 1;
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r) sum[r][word] = __dadd_rn(sum[r][word], minus ? -inner[k][r] : inner[k][r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (r >= rows) break;
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const uint64_t at = group * 128 + 32 * word + lane;
          if (at >= layer.rows) continue;
          float y = __fmaf_rn(scale, static_cast<float>(sum[r][word]), work.base[input[r] * static_cast<int64_t>(layer.rows) + static_cast<int64_t>(at)]);
          y = __fmaf_rn(scale, static_cast<float>(bias[word]), y);
          work.y[(base_row + r) * static_cast<int64_t>(layer.rows) + static_cast<int64_t>(at)] = work.relu && y < 0 ? 0.0F : y;  // NaN stays
        }
      }
    }
    __syncwarp();  // the products are read
  }
}

bool Valid(const EggrollLayer& layer) { return layer.rank >= 1 && layer.rows >= 1 && layer.columns >= 1; }

}  // namespace

cudaError_t LaunchEggrollUpdate(const EggrollLayer& layer, const EggrollMember* members, int64_t count, float step, float* weights, cudaStream_t stream) {
  if (!Valid(layer) || count < 0 || weights == nullptr || (count > 0 && members == nullptr)) return cudaErrorInvalidValue;
  const auto column_groups = static_cast<int64_t>((layer.columns + 31) / 32), row_groups = static_cast<int64_t>((layer.rows + kRows - 1) / kRows);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((column_groups * row_groups + kWarps - 1) / kWarps, 8 * 132));
  UpdateKernel<<<blocks, kThreads, 0, stream>>>(layer, members, count, step, weights, column_groups, row_groups);
  return cudaGetLastError();
}

cudaError_t LaunchEggrollForward(const EggrollForwardWork& work, cudaStream_t stream) {
  const bool together = work.bias.rows == work.weight.rows && work.bias.columns == 1 && work.bias.rank == work.weight.rank;
  if (!Valid(work.weight) || !together || work.weight.rank > kMaxEggrollForwardRank || work.members < 0 || work.rows < 0) return cudaErrorInvalidValue;
  if (work.members == 0 || work.rows == 0) return cudaSuccess;
  if (work.inputs != work.rows && work.inputs != work.members * work.rows) return cudaErrorInvalidValue;
  const int64_t turns = work.members * ((work.rows + kRowsAtOnce - 1) / kRowsAtOnce);
  ForwardKernel<<<static_cast<unsigned>(std::min<int64_t>((turns + kWarps - 1) / kWarps, 65535)), kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace tributary::client
