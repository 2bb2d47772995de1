// Minibatch SGD: for each batch, g = ∇loss(w) + weight_decay·w;  v = momentum·v + g;  w = w − lr·v, v beginning at 0 in each task
// (torch.optim.SGD without dampening; McMahan et al., AISTATS 2017, Algorithm 1, ClientUpdate, for momentum = weight_decay = 0).
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "client/core/batch_order.h"
#include "client/torch/local/solver.h"

namespace tributary::client {

absl::StatusOr<LocalOutcome> RunSgd(const LocalRun& run) {
  const LocalSpec& spec = run.spec;
  BatchOrder order(run.data.count(), static_cast<size_t>(spec.batch), run.seed);
  const uint64_t steps = spec.steps > 0 ? static_cast<uint64_t>(spec.steps) : static_cast<uint64_t>(spec.epochs) * order.batches_per_epoch();
  at::Tensor& weights = run.model.trainable();
  at::Tensor& gradient = run.model.gradient();
  at::Tensor velocity;
  if (spec.momentum != 0) velocity = run.model.Scratch();

  LocalOutcome outcome;
  double loss_sum = 0;
  double examples = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const std::span<const uint32_t> positions = order.At(step);
    const Batch batch = run.data.At(positions);
    gradient.zero_();
    TRIB_ASSIGN_OR_RETURN(const at::Tensor loss, run.data.Loss(run.model.model().Forward(batch.x, /*training=*/true), batch));
    loss.backward();
    const double value = loss.item<double>();
    if (!std::isfinite(value)) {
      return Internal("sgd: the loss is {} at step {} of {} (lr {}, batch {}): lower local.lr", value, step + 1, steps, spec.lr, spec.batch);
    }
    {
      const at::NoGradGuard no_grad;
      if (spec.weight_decay != 0) gradient.add_(weights, spec.weight_decay);
      if (velocity.defined()) velocity.mul_(spec.momentum).add_(gradient);
      weights.sub_(velocity.defined() ? velocity : gradient, spec.lr);
    }
    loss_sum += value * static_cast<double>(positions.size());
    examples += static_cast<double>(positions.size());
    ++outcome.steps;
    if (run.progress && !run.progress(static_cast<float>(step + 1) / static_cast<float>(steps))) {
      return Cancelled("sgd: stopped after step {} of {}", step + 1, steps);
    }
  }
  outcome.train_loss = examples > 0 ? loss_sum / examples : 0;
  return outcome;
}

}  // namespace tributary::client
