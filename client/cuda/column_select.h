// Order statistics of each expert on the GPU: the `rank`-th largest over the tokens of  (score + bias_j) − offset_i , for the dual prices of
// bip and the margins of quantile balancing. Exact: a radix select, no sort. What is not a number comes last. Reference: RankLargest
// (client/core/moe/moe_math.h) on the columns.
// Raw device pointers and a stream, as in privatise.h. Errors: cudaErrorInvalidValue for sizes out of range.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tributary::client {

struct ColumnSelect {
  const float* scores = nullptr;   // [tokens, experts]
  const float* bias = nullptr;     // [experts], or null: 0
  const float* offset = nullptr;   // [tokens], or null: 0
  int64_t tokens = 0;              // >= 1, < 2^31
  int experts = 0;                 // >= 1
  int64_t rank = 0;                // 1 (the largest) … tokens
  float* selected = nullptr;       // [experts]
};

cudaError_t LaunchColumnSelect(const ColumnSelect& work, cudaStream_t stream);

}  // namespace tributary::client
