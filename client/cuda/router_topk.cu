// A warp a token: lane l has experts l, l + 32, …, so that sums over lanes are in the order of moe_math.h. The K largest come out by as many
// rounds of a maximum over the warp of (score, lowest index) packed into 64 bits.
#include "client/cuda/router_topk.h"

#include <algorithm>

#include "common/exact_exp.h"

namespace tributary::client {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerLane = kMaxRouterExperts / 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ double SumOverLanes(double value) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) value = __dadd_rn(value, __shfl_down_sync(kAllLanes, value, half));
  return __shfl_sync(kAllLanes, value, 0);
}

__device__ __forceinline__ float MaxOverLanes(float value) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, half));
  return value;
}

// Ordered as its float is; what is not a number comes last.
__device__ __forceinline__ uint32_t OrderedBits(float value) {
  const uint32_t bits = __float_as_uint(isnan(value) ? -__int_as_float(0x7F800000) : value + 0.0F);  // −0 is 0
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float FromOrderedBits(uint32_t ordered) { return __uint_as_float(ordered >> 31 != 0 ? ordered & 0x7FFFFFFFu : ~ordered); }

// Scores of one token, in place of its logits.
__device__ __forceinline__ void ScoreToken(const RouterTopK& work, int lane, float (&value)[kPerLane]) {
  if (work.sigmoid) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + 32 * i < work.experts) value[i] = static_cast<float>(1.0 / (1.0 + ExactExp(-static_cast<double>(value[i]))));
    }
    return;
  }
  float largest = -__int_as_float(0x7F800000);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane + 32 * i < work.experts) largest = fmaxf(largest, value[i]);
  }
  const double top = static_cast<double>(MaxOverLanes(largest));
  double power[kPerLane];
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    power[i] = 0;
    if (lane + 32 * i < work.experts) {
      power[i] = ExactExp(static_cast<double>(value[i]) - top);
      sum = __dadd_rn(sum, power[i]);
    }
  }
  sum = SumOverLanes(sum);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) value[i] = static_cast<float>(power[i] / sum);
}

__global__ void __launch_bounds__(kThreads) RouterKernel(const __grid_constant__ RouterTopK work) {
  __shared__ int32_t counts[kMaxRouterExperts];
  for (int j = threadIdx.x; j < work.experts; j += kThreads) counts[j] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; token < work.tokens; token += int64_t{gridDim.x} * kWarps) {
    float score[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) score[i] = lane + 32 * i < work.experts ? work.logits[token * work.experts + lane + 32 * i] : 0.0F;
    ScoreToken(work, lane, score);
    uint64_t key[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = lane + 32 * i;
      key[i] = 0;
      if (expert >= work.experts) continue;
      if (work.scores != nullptr) work.scores[token * work.experts + expert] = score[i];
      const float biased = work.bias == nullptr ? score[i] : __fadd_rn(score[i], work.bias[expert]);
      key[i] = uint64_t{OrderedBits(biased)} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(expert));
    }
    int mine = -1;  // lane k keeps the k-th choice
    uint32_t taken = 0;  // a bit for each of this lane's experts
    for (int k = 0; k < work.top_k; ++k) {
      uint64_t best = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) best = max(best, key[i]);
#pragma unroll
      for (int half = 16; half > 0; half /= 2) best = max(best, static_cast<uint64_t>(__shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(best), half)));
      const int expert = static_cast<int>(0xFFFFFFFFu - static_cast<uint32_t>(best));
      if (lane == k) mine = expert;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (expert == lane + 32 * i) {
          key[i] = 0;
          taken |= 1u << i;
        }
      }
    }
    if (work.threshold != nullptr) {
      uint64_t next = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) next = max(next, key[i]);
#pragma unroll
      for (int half = 16; half > 0; half /= 2) next = max(next, static_cast<uint64_t>(__shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(next), half)));
      if (lane == 0) work.threshold[token] = next == 0 ? -__int_as_float(0x7F800000) : FromOrderedBits(static_cast<uint32_t>(next >> 32));
    }
    // The chosen scores' sum, by expert: the order of the reference.
    double sum = 0;
    float own = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      uint32_t lanes = __ballot_sync(kAllLanes, (taken >> i & 1u) != 0);
      while (lanes != 0) {
        const int from = __ffs(static_cast<int>(lanes)) - 1;
        lanes &= lanes - 1;
        const float chosen = __shfl_sync(kAllLanes, score[i], from);
        sum = __dadd_rn(sum, static_cast<double>(chosen));
        if (mine == from + 32 * i) own = chosen;
      }
    }
    if (lane < work.top_k) {
      work.chosen[token * work.top_k + lane] = mine;
      work.gates[token * work.top_k + lane] = sum > 0 ? static_cast<float>(static_cast<double>(own) / sum) : 0.0F;
      atomicAdd(&counts[mine], 1);
    }
  }
  __syncthreads();
  for (int j = threadIdx.x; j < work.experts; j += kThreads) {
    if (counts[j] != 0) atomicAdd(&work.counts[j], counts[j]);
  }
}

}  // namespace

cudaError_t LaunchRouterTopK(const RouterTopK& work, cudaStream_t stream) {
  if (work.tokens < 0 || work.experts < 1 || work.experts > kMaxRouterExperts || work.top_k < 1 || work.top_k > std::min(work.experts, kMaxRouterTopK) ||
      work.logits == nullptr || work.chosen == nullptr || work.gates == nullptr || work.counts == nullptr) {
    return cudaErrorInvalidValue;
  }
  if (work.tokens == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((work.tokens + kWarps - 1) / kWarps, 8 * 132));
  RouterKernel<<<blocks, kThreads, 0, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace tributary::client
