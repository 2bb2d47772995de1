#include "client/torch/minibatch_steps.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "client/core/batch_order.h"
#include "client/core/random.h"
#include "client/torch/repeated_steps.h"

namespace tributary::client {

namespace {

constexpr uint64_t kNoiseStream = 0x6e6f697365;

at::Tensor Noise(const TrainableModel& model, int64_t elements, double deviation, CounterRandom& random) {
  std::vector<double> values(static_cast<size_t>(elements));
  for (double& value : values) value = deviation * random.Normal();
  return ToTensor(values, model);
}

// Adds the gradient of the mean loss over a minibatch, which comes in pieces; that loss.
absl::StatusOr<double> AddGradient(const LocalRun& run, const std::vector<Batch>& pieces, int64_t examples) {
  double value = 0;
  for (const Batch& piece : pieces) {
    TRIB_ASSIGN_OR_RETURN(at::Tensor loss, run.data.Loss(run.model.model().Forward(piece.x, /*training=*/true), piece));
    const double share = static_cast<double>(piece.x.size(0)) / static_cast<double>(examples);
    const at::Tensor auxiliary = run.model.model().AuxiliaryLoss();
    const at::Tensor all = auxiliary.defined() ? loss + auxiliary : loss;
    (pieces.size() > 1 ? all * share : all).backward();
    value += loss.item<double>() * share;
  }
  return value;
}

// The gradient at `weights` and at x⁻ over one batch, as the correction combines them; the loss at `weights`.
absl::StatusOr<double> Direction(const LocalRun& run, const std::vector<Batch>& batch, int64_t examples, CounterRandom& random, at::Tensor* mean_gradient,
                                 double share) {
  const Correction& correction = run.correction;
  at::Tensor& weights = run.model.trainable();
  at::Tensor& gradient = run.model.gradient();
  gradient.zero_();
  TRIB_ASSIGN_OR_RETURN(const double value, AddGradient(run, batch, examples));
  at::Tensor fresh, noise;
  if (correction.gradient_noise > 0) {
    noise = Noise(run.model, gradient.size(0), correction.gradient_noise, random);
    const at::NoGradGuard no_grad;
    gradient.add_(noise);
  }
  if (correction.wants_mean_gradient) {
    const at::NoGradGuard no_grad;
    mean_gradient->add_(gradient, share);
  }
  if (correction.b != 0) {
    at::Tensor kept, buffers, counters;  // of the model that trains: the pass at x⁻ leaves no trace in its running statistics
    {
      const at::NoGradGuard no_grad;
      fresh = gradient.clone();
      kept = weights.clone();
      buffers = run.model.buffers().clone();
      counters = run.model.counters().clone();
      weights.copy_(correction.before);
      gradient.zero_();
    }
    TRIB_RETURN_IF_ERROR(AddGradient(run, batch, examples).status());
    const at::NoGradGuard no_grad;
    weights.copy_(kept);
    run.model.buffers().copy_(buffers);
    run.model.counters().copy_(counters);
    if (noise.defined()) gradient.add_(noise);
    gradient.mul_(correction.b).add_(fresh, correction.a);
  } else if (correction.a != 1) {
    const at::NoGradGuard no_grad;
    gradient.mul_(correction.a);
  }
  const at::NoGradGuard no_grad;
  if (correction.mu != 0) gradient.add_(weights, correction.mu).sub_(correction.s, correction.mu);
  if (correction.v.defined()) gradient.add_(correction.v);
  return value;
}

}  // namespace

absl::StatusOr<LocalOutcome> RunMinibatches(const LocalRun& run, LocalOptimizer& optimizer) {
  const LocalSpec& spec = run.spec;
  if (run.repeated != nullptr && run.correction.plain() && run.pieces == 1) return run.repeated->Run(run, optimizer);
  BatchOrder order(run.data.count(), static_cast<size_t>(spec.batch), run.seed);
  uint64_t steps = spec.steps > 0 ? static_cast<uint64_t>(spec.steps) : static_cast<uint64_t>(spec.epochs) * order.batches_per_epoch();
  if (run.correction.gradient_only) steps = 1;
  at::Tensor& weights = run.model.trainable();
  at::Tensor& gradient = run.model.gradient();
  optimizer.Begin(run.model);
  CounterRandom random(run.seed, kNoiseStream);

  LocalOutcome outcome;
  if (run.correction.wants_mean_gradient) {
    const at::NoGradGuard no_grad;
    outcome.mean_gradient = at::zeros_like(gradient);
  }
  double loss_sum = 0;
  double examples = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const std::span<const uint32_t> positions = order.At(step);
    std::vector<Batch> batch;
    const size_t each = (positions.size() + static_cast<size_t>(run.pieces) - 1) / static_cast<size_t>(run.pieces);
    for (size_t first = 0; first < positions.size(); first += each) batch.push_back(run.data.At(positions.subspan(first, std::min(each, positions.size() - first))));
    TRIB_ASSIGN_OR_RETURN(const double value, Direction(run, batch, static_cast<int64_t>(positions.size()), random, &outcome.mean_gradient,
                                                        1.0 / static_cast<double>(steps)));
    if (!std::isfinite(value)) return LossNotFinite(value, step, steps, spec);
    if (!run.correction.gradient_only) {
      const at::NoGradGuard no_grad;
      optimizer.Step(weights, gradient, {});
      run.model.model().EndStep();
    }
    loss_sum += value * static_cast<double>(positions.size());
    examples += static_cast<double>(positions.size());
    ++outcome.steps;
    if (run.progress && !run.progress(static_cast<float>(step + 1) / static_cast<float>(steps))) {
      return Cancelled("{}: stopped after step {} of {}", spec.solver, step + 1, steps);
    }
  }
  outcome.train_loss = examples > 0 ? loss_sum / examples : 0;
  return outcome;
}

}  // namespace tributary::client
