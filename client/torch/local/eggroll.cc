// No step: the loss of each of the client's population members, by forward passes alone (EGGROLL, arXiv 2511.16652), without gradients and in evaluation mode. All members see
// the minibatches that SGD would see. Where a GPU makes the noise and the model is a row of dense layers, many members go through it at once: x·Wᵀ is one product
// for all of them, and each has s·(σ/√r)·A·(Bᵀ·x) added to it. Otherwise a member's matrices are W + s·(σ/√r)·A·Bᵀ in memory, one member at a time.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/core/batch_order.h"
#include "client/core/eggroll_fitness.h"
#include "client/torch/device_noise.h"
#include "client/torch/local/solver.h"

namespace tributary::client {
namespace {

constexpr int64_t kRowsAtOnce = int64_t{1} << 16;  // of all members in a forward pass

struct Minibatches {
  std::vector<Batch> batches;
  double examples = 0;
  int64_t largest = 0;
};

Minibatches MinibatchesOf(const LocalRun& run) {
  BatchOrder order(run.data.count(), static_cast<size_t>(run.spec.batch), run.seed);
  const uint64_t steps = run.spec.steps > 0 ? static_cast<uint64_t>(run.spec.steps) : static_cast<uint64_t>(run.spec.epochs) * order.batches_per_epoch();
  Minibatches all;
  for (uint64_t step = 0; step < steps; ++step) {
    all.batches.push_back(run.data.At(order.At(step)));
    const int64_t rows = all.batches.back().x.size(0);
    all.examples += static_cast<double>(rows);
    all.largest = std::max(all.largest, rows);
  }
  return all;
}

// One member after the other, its weights in memory.
absl::StatusOr<std::vector<double>> ByWeights(const LocalRun& run, const Minibatches& all, const DeviceNoise* device) {
  const EggrollPopulation& population = *run.population;
  at::Tensor& weights = run.model.trainable();
  const at::Tensor start = weights.clone();
  PairNoise pairs(population);
  const auto loss = [&](size_t member, size_t) -> absl::StatusOr<std::vector<double>> {
    const uint32_t pair = EggrollPopulation::PairOf(member);
    weights.copy_(start);
    if (device != nullptr) {
      device->AddToWeights(weights, pair, population.ScaleOf(member));
    } else {
      const std::span<const float> noise = pairs.Of(pair);
      // from_blob wants a mutable pointer; nobody writes through it.
      const at::Tensor on_host = at::from_blob(const_cast<float*>(noise.data()), {static_cast<int64_t>(noise.size())}, at::TensorOptions().dtype(at::kFloat));
      weights.add_(on_host.to(run.model.device(), run.model.scalar_type()), population.ScaleOf(member));
    }
    at::Tensor sum = at::zeros({}, weights.options().dtype(at::kDouble));
    for (const Batch& batch : all.batches) {
      TRIB_ASSIGN_OR_RETURN(const at::Tensor mean, run.data.Loss(run.model.model().Forward(batch.x, /*training=*/false), batch));
      sum.add_(mean.to(at::kDouble), static_cast<double>(batch.x.size(0)));
    }
    return std::vector<double>{sum.item<double>() / all.examples};
  };
  absl::StatusOr<std::vector<double>> fitness = population.Fitness(/*at_once=*/1, loss, run.progress);
  weights.copy_(start);
  return fitness;
}

struct PerturbedTensor {
  at::Tensor value;
  size_t index = 0;  // among the trainable ones
};
struct PerturbedLayer {
  PerturbedTensor weight, bias;
  bool relu_after = false;
};

// Empty: the model is something else than dense layers with ReLU between them.
std::vector<PerturbedLayer> DenseLayersOf(TrainableModel& model) {
  std::map<std::string, PerturbedTensor> tensors;
  for (const ModelTensor& tensor : model.model().tensors()) tensors[tensor.name].value = tensor.value;
  size_t index = 0;
  for (const PlacedTensor& tensor : model.layout().tensors()) {
    if (tensor.spec.kind == TensorKind::kTrainable) tensors[tensor.spec.name].index = index++;
  }
  std::vector<PerturbedLayer> layers;
  for (const ChainLayer& layer : model.model().chain()) {
    if (layer.kind == ChainLayer::Kind::kRelu && !layers.empty()) {
      layers.back().relu_after = true;
    } else if (layer.kind == ChainLayer::Kind::kDense) {
      layers.push_back({.weight = tensors.at(layer.name + ".weight"), .bias = tensors.at(layer.name + ".bias")});
    } else {
      return {};
    }
  }
  return layers;
}

// Many members side by side, their noise in no memory.
absl::StatusOr<std::vector<double>> ByOutputs(const LocalRun& run, const Minibatches& all, const std::vector<PerturbedLayer>& layers, const DeviceNoise& device) {
  const auto options = run.model.trainable().options();
  const auto losses = [&](size_t first, size_t count) -> absl::StatusOr<std::vector<double>> {
    const auto members = static_cast<int64_t>(count);
    at::Tensor sums = at::zeros({members}, options.dtype(at::kDouble));
    for (const Batch& batch : all.batches) {
      const int64_t rows = batch.x.size(0);
      at::Tensor h = batch.x.flatten(1).contiguous();
      for (const PerturbedLayer& layer : layers) {
        const at::Tensor plain = at::addmm(layer.bias.value, h, layer.weight.value.t());
        h = device.OutputsOf(layer.weight.index, layer.bias.index, first, count, rows, h, plain, layer.relu_after);
      }
      TRIB_ASSIGN_OR_RETURN(const at::Tensor means, run.data.LossOfEach(h, batch, members));
      sums.add_(means.to(at::kDouble), static_cast<double>(rows));
    }
    const at::Tensor host = sums.div_(all.examples).cpu();
    return std::vector<double>(host.const_data_ptr<double>(), host.const_data_ptr<double>() + members);
  };
  return run.population->Fitness(static_cast<size_t>(std::max<int64_t>(1, kRowsAtOnce / std::max<int64_t>(1, all.largest))), losses, run.progress);
}

}  // namespace

absl::StatusOr<LocalOutcome> RunEggroll(const LocalRun& run) {
  if (run.population == nullptr) return InvalidArgument("local.solver: eggroll needs a population; expected strategy eggroll");
  const at::NoGradGuard no_grad;
  const Minibatches all = MinibatchesOf(run);
  const std::unique_ptr<DeviceNoise> device = DeviceNoise::Of(*run.population, run.model.trainable());
  std::vector<PerturbedLayer> layers;
  if (device != nullptr && device->MakesOutputs() && !UsesBf16(run.spec)) layers = DenseLayersOf(run.model);
  LocalOutcome outcome;
  TRIB_ASSIGN_OR_RETURN(outcome.fitness, layers.empty() ? ByWeights(run, all, device.get()) : ByOutputs(run, all, layers, *device));
  return outcome;
}

}  // namespace tributary::client
