// The router of a mixture-of-experts layer on the GPU in one pass: scores, bias, the K largest, their gates, and how many tokens each expert
// has. Bit for bit what client/core/moe/moe_math.h gives (Scores, SelectTopK, Gates with kRenormalised and kLinear), the reference.
//
// Raw device pointers and a stream, as in privatise.h. Errors: cudaErrorInvalidValue for sizes out of range.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace tributary::client {

inline constexpr int kMaxRouterExperts = 256;
inline constexpr int kMaxRouterTopK = 8;

struct RouterTopK {
  const float* logits = nullptr;  // [tokens, experts]
  const float* bias = nullptr;    // [experts], or null: 0
  int64_t tokens = 0;
  int experts = 0;                // 1 … kMaxRouterExperts
  int top_k = 0;                  // 1 … min(experts, kMaxRouterTopK)
  bool sigmoid = false;           // else softmax
  float* scores = nullptr;        // [tokens, experts], or null: not wanted
  int32_t* chosen = nullptr;      // [tokens, top_k], the largest first
  float* gates = nullptr;         // [tokens, top_k], in the order of `chosen`
  float* threshold = nullptr;     // [tokens], the (K+1)-th largest of score + bias, or null; −∞ where K = experts
  int32_t* counts = nullptr;      // [experts], added to
};

cudaError_t LaunchRouterTopK(const RouterTopK& work, cudaStream_t stream);

}  // namespace tributary::client
