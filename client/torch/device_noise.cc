#include "client/torch/device_noise.h"

#ifdef TRIBUTARY_CUDA
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <vector>

#include "client/cuda/eggroll.h"
#include "client/torch/device_stream.h"
#endif

namespace tributary::client {

#ifdef TRIBUTARY_CUDA

std::unique_ptr<DeviceNoise> DeviceNoise::Of(const EggrollPopulation& population, const at::Tensor& weights) {
  if (!weights.is_cuda() || weights.scalar_type() != at::kFloat) return nullptr;
  std::vector<EggrollMember> pairs(population.members / 2);
  for (size_t i = 0; i < pairs.size(); ++i) pairs[i] = {.member = static_cast<uint32_t>(i), .weight = 1};
  const auto bytes = static_cast<int64_t>(pairs.size() * sizeof(EggrollMember));
  const at::Tensor device = at::from_blob(pairs.data(), {bytes}, at::TensorOptions().dtype(at::kByte)).to(weights.device());
  return std::unique_ptr<DeviceNoise>(new DeviceNoise(population, device));
}

void DeviceNoise::AddToWeights(at::Tensor& weights, uint32_t pair, double scale) const {
  const auto* member = reinterpret_cast<const EggrollMember*>(pairs_.const_data_ptr()) + pair;
  for (const EggrollTensor& tensor : population_.tensors) {
    EggrollLayer layer = tensor.layer;
    layer.seed = population_.noise_seed;
    CheckCuda(LaunchEggrollUpdate(layer, member, 1, static_cast<float>(scale), weights.mutable_data_ptr<float>() + tensor.first, StreamOf(weights.device())), "noise of weights");
  }
}

bool DeviceNoise::MakesOutputs() const { return population_.tensors.empty() || population_.tensors[0].layer.rank <= kMaxEggrollForwardRank; }

at::Tensor DeviceNoise::OutputsOf(size_t weight, size_t bias, size_t first, size_t count, int64_t rows, const at::Tensor& x, const at::Tensor& base, bool relu) const {
  const auto layer = [&](size_t index) {
    EggrollLayer of = population_.tensors.at(index).layer;
    of.seed = population_.noise_seed;
    return of;
  };
  const auto members = static_cast<int64_t>(count);
  const EggrollLayer of = layer(weight);
  const auto outputs = static_cast<int64_t>(of.rows);
  TORCH_CHECK(x.is_contiguous() && base.is_contiguous() && x.scalar_type() == at::kFloat && base.scalar_type() == at::kFloat && x.size(1) == static_cast<int64_t>(of.columns) &&
                  base.size(1) == outputs && base.size(0) == x.size(0),
              "noise of outputs: x [", x.sizes(), "] and outputs [", base.sizes(), "] of tensor ", weight);
  at::Tensor y = base.size(0) == members * rows ? base : at::empty({members * rows, outputs}, base.options());
  CheckCuda(LaunchEggrollForward({.weight = of,
                                  .bias = layer(bias),
                                  .first = static_cast<uint32_t>(first),
                                  .members = members,
                                  .rows = rows,
                                  .scale = static_cast<float>(population_.scale),
                                  .x = x.const_data_ptr<float>(),
                                  .base = base.const_data_ptr<float>(),
                                  .inputs = x.size(0),
                                  .y = y.mutable_data_ptr<float>(),
                                  .relu = relu},
                                 StreamOf(y.device())),
            "noise of outputs");
  return y;
}

#else

std::unique_ptr<DeviceNoise> DeviceNoise::Of(const EggrollPopulation&, const at::Tensor&) { return nullptr; }
void DeviceNoise::AddToWeights(at::Tensor&, uint32_t, double) const {}
bool DeviceNoise::MakesOutputs() const { return false; }
at::Tensor DeviceNoise::OutputsOf(size_t, size_t, size_t, size_t, int64_t, const at::Tensor&, const at::Tensor& base, bool) const { return base; }

#endif

}  // namespace tributary::client
