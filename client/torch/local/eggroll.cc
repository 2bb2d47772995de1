// No step: the loss of each of the client's population members, by forward passes alone (EGGROLL, arXiv 2511.16652), without gradients and in evaluation mode. A member's
// matrices are W + s·(σ/√r)·A·Bᵀ in memory, one member at a time; its minibatches are those that SGD would see, the same for all members.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include "client/core/batch_order.h"
#include "client/core/eggroll_fitness.h"
#include "client/torch/local/solver.h"

namespace tributary::client {

absl::StatusOr<LocalOutcome> RunEggroll(const LocalRun& run) {
  if (run.population == nullptr) return InvalidArgument("local.solver: eggroll needs a population; expected strategy eggroll");
  const at::NoGradGuard no_grad;
  const LocalSpec& spec = run.spec;
  BatchOrder order(run.data.count(), static_cast<size_t>(spec.batch), run.seed);
  const uint64_t steps = spec.steps > 0 ? static_cast<uint64_t>(spec.steps) : static_cast<uint64_t>(spec.epochs) * order.batches_per_epoch();
  std::vector<Batch> batches;
  double examples = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    batches.push_back(run.data.At(order.At(step)));
    examples += static_cast<double>(batches.back().x.size(0));
  }
  at::Tensor& weights = run.model.trainable();
  const at::Tensor start = weights.clone();
  const auto loss = [&](std::span<const float> noise, double scale) -> absl::StatusOr<double> {
    // from_blob wants a mutable pointer; nobody writes through it.
    const at::Tensor all = at::from_blob(const_cast<float*>(noise.data()), {static_cast<int64_t>(noise.size())}, at::TensorOptions().dtype(at::kFloat));
    weights.copy_(start).add_(all.to(run.model.device(), run.model.scalar_type()), scale);
    double sum = 0;
    for (const Batch& batch : batches) {
      TRIB_ASSIGN_OR_RETURN(const at::Tensor mean, run.data.Loss(run.model.model().Forward(batch.x, /*training=*/false), batch));
      sum += mean.item<double>() * static_cast<double>(batch.x.size(0));
    }
    return sum / examples;
  };
  LocalOutcome outcome;
  absl::StatusOr<std::vector<double>> fitness = run.population->Fitness(loss, run.progress);
  weights.copy_(start);
  if (!fitness.ok()) return fitness.status();
  outcome.fitness = *std::move(fitness);
  return outcome;
}

}  // namespace tributary::client
