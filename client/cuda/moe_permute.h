// Moving tokens to their experts and back on the GPU: Dispatch turns the choices of router_topk.h into the pairs of a Selection
// (client/core/moe/moe_math.h: sorted by expert, within one by token), Gather copies rows there, Combine brings the experts' outputs back:
//   gathered[p, :] = x[token[p], :]      out[n, :] = Σ_k gates[n, k]·y[place[n·K + k], :], k = 0 … K−1 in turn, each step one fused multiply-add
// No sum is by atomics: results do not change from run to run. References: SelectionOf, and client/core/moe/dispatch.h.
// Raw device pointers and a stream, as in privatise.h. Errors: cudaErrorInvalidValue for sizes out of range.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace tributary::client {

struct MoeDispatch {
  const int32_t* chosen = nullptr;  // [tokens, top_k]
  const int32_t* counts = nullptr;  // [experts], tokens of each
  int64_t tokens = 0;               // tokens · top_k < 2^31
  int experts = 0;                  // 1 … 1024
  int top_k = 0;
  int64_t* token = nullptr;         // [tokens·top_k] of each pair
  int64_t* offsets = nullptr;       // [experts + 1]
  int32_t* place = nullptr;         // [tokens·top_k], the pair of each choice
};
cudaError_t LaunchMoeDispatch(const MoeDispatch& work, cudaStream_t stream);

// Rows of `row_bytes`, a multiple of 16, aligned to 16.
cudaError_t LaunchMoeGather(const void* x, const int64_t* token, int64_t pairs, size_t row_bytes, void* gathered, cudaStream_t stream);

cudaError_t LaunchMoeCombine(const float* y, const float* gates, const int32_t* place, int64_t tokens, int top_k, int64_t width, float* out, cudaStream_t stream);

}  // namespace tributary::client
