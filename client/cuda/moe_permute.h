// Moving tokens to their experts and back on the GPU: Dispatch turns the choices of router_topk.h into the pairs of a Selection
// (client/core/moe/moe_math.h: sorted by expert, within one by token), Gather copies rows there, Combine brings the experts' outputs back:
//   gathered[p, :] = x[token[p], :]      out[n, :] = Σ_k gates[n, k]·y[place[n·K + k], :], k = 0 … K−1 in turn, each step one fused multiply-add
// CombineBackward is the derivative of Combine by y and by the gates, for a derivative dout of out:
//   dy[place[c], :] = gates[c]·dout[n, :]      dgates[c] = Σ_d dout[n, d]·y[place[c], d],      c = n·K + k
// Gather's own derivative is Combine with all gates 1. Sums are in single precision whatever the rows' type.
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

enum class RowType { kF32, kBf16 };

struct MoeCombine {
  RowType type = RowType::kF32;
  const void* y = nullptr;         // [tokens·top_k, width]
  const float* gates = nullptr;    // [tokens, top_k]; null: 1
  const int32_t* place = nullptr;  // [tokens·top_k], of MoeDispatch
  int64_t tokens = 0;
  int top_k = 0;
  int64_t width = 0;
  void* out = nullptr;             // [tokens, width]
};
cudaError_t LaunchMoeCombine(const MoeCombine& work, cudaStream_t stream);

struct MoeCombineBackward {
  RowType type = RowType::kF32;
  const void* dout = nullptr;      // [tokens, width]
  const void* y = nullptr;         // [tokens·top_k, width]
  const float* gates = nullptr;    // [tokens, top_k]
  const int32_t* place = nullptr;
  int64_t tokens = 0;
  int top_k = 0;
  int64_t width = 0;
  void* dy = nullptr;              // [tokens·top_k, width]
  float* dgates = nullptr;         // [tokens, top_k]
};
cudaError_t LaunchMoeCombineBackward(const MoeCombineBackward& work, cudaStream_t stream);

}  // namespace tributary::client
