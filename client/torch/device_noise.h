// EGGROLL's noise on a GPU, by the kernels of client/cuda (eggroll.h): made in registers, in no memory.
// Built with CUDA only (TRIBUTARY_CUDA); elsewhere Of gives null, and noise is made on the processor (PairNoise).
// Borrows the population. Threads: thread-compatible. May throw LibTorch's exceptions; CUDA's errors as c10::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "client/core/eggroll_fitness.h"

namespace tributary::client {

class DeviceNoise {
 public:
  // `weights`: the trainable elements in one vector, which says device and type. Null: they are not float32 on a GPU, or this build has no kernels.
  static std::unique_ptr<DeviceNoise> Of(const EggrollPopulation& population, const at::Tensor& weights);

  // weights [P] += scale·noise of the pair.
  void AddToWeights(at::Tensor& weights, uint32_t pair, double scale) const;

  // Whether OutputsOf can be called: the rank may be too large for it.
  bool MakesOutputs() const;
  // The outputs [count·rows, m] of a dense layer for `count` members from `first` on, `rows` rows each, member by member. `weight`, `bias`: places of its tensors
  // [m, n] and [m] among the trainable ones. x: [rows, n], which all members have, or [count·rows, n]; base: x·Wᵀ + b of as many rows, which may be written to.
  at::Tensor OutputsOf(size_t weight, size_t bias, size_t first, size_t count, int64_t rows, const at::Tensor& x, const at::Tensor& base, bool relu) const;

 private:
  explicit DeviceNoise(const EggrollPopulation& population, const at::Tensor& pairs) : population_(population), pairs_(pairs) {}
  const EggrollPopulation& population_;
  at::Tensor pairs_;  // EggrollMember of each pair, of weight 1, on the device
};

}  // namespace tributary::client
