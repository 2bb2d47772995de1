// EGGROLL on the GPU: common/eggroll.h with the noise made in registers, bit for bit its results. No perturbation and no update is ever in
// memory; a member's forward pass costs 2·r products beside W·x.
//
// Raw device pointers and a stream, as in privatise.h. Errors: cudaErrorInvalidValue for sizes out of range.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/eggroll.h"

namespace tributary::client {

// weights [rows, columns] ← fma(step, (float)Σ weight·A·Bᵀ, weights); `members`: device memory, in any order.
cudaError_t LaunchEggrollUpdate(const EggrollLayer& layer, const EggrollMember* members, int64_t count, float step, float* weights, cudaStream_t stream);

// For each of `batch` rows: y[row] += scale[row]·A·(Bᵀ·x[row]) of member[row]; x [batch, columns], y [batch, rows]. rank <= 32.
struct EggrollForwardWork {
  EggrollLayer layer{};
  const uint32_t* member = nullptr;  // [batch]
  const float* scale = nullptr;      // [batch], s·σ/√r
  const float* x = nullptr;
  float* y = nullptr;
  int64_t batch = 0;
};
cudaError_t LaunchEggrollForward(const EggrollForwardWork& work, cudaStream_t stream);

}  // namespace tributary::client
