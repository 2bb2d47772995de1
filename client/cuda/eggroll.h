// EGGROLL on the GPU: common/eggroll.h with the noise made in registers, bit for bit its results. No perturbation and no update is ever in
// memory; a member's forward pass costs 2·r products beside W·x.
//
// Raw device pointers and a stream, as in privatise.h. Errors: cudaErrorInvalidValue for sizes out of range.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/eggroll.h"

namespace tributary::client {

inline constexpr uint32_t kMaxEggrollForwardRank = 32;

// weights [rows, columns] ← fma(step, (float)Σ weight·A·Bᵀ, weights); `members`: device memory, in any order.
cudaError_t LaunchEggrollUpdate(const EggrollLayer& layer, const EggrollMember* members, int64_t count, float step, float* weights, cudaStream_t stream);

// A dense layer's outputs of many members, of whom each has `rows` rows and sees the same x where `inputs` is `rows`:
//   y[row] = base[row mod inputs] + scale·A·(Bᵀ·x[row mod inputs]) + scale·(noise of the bias), with ReLU if wanted; scale with the member's sign
// Members first … first + members − 1; member i has the noise of pair i / 2, odd ones negative. The sums are those of EggrollForward, for the weight and then
// for the bias, whose x is 1. rank <= kMaxEggrollForwardRank, of both layers the same.
struct EggrollForwardWork {
  EggrollLayer weight{}, bias{};  // [m, n]; [m, 1]
  uint32_t first = 0;
  int64_t members = 0, rows = 0;
  float scale = 0;                // σ/√r
  const float* x = nullptr;       // [inputs, n]
  const float* base = nullptr;    // [inputs, m]: x·Wᵀ + b; may be y
  int64_t inputs = 0;             // rows, or members·rows
  float* y = nullptr;             // [members·rows, m]
  bool relu = false;
};
cudaError_t LaunchEggrollForward(const EggrollForwardWork& work, cudaStream_t stream);

}  // namespace tributary::client
