#include "client/torch/repeated_steps.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <vector>

#include "client/core/batch_order.h"
#include "client/torch/guard.h"
#include "common/log.h"

namespace tributary::client {
namespace {

constexpr size_t kMaxRecorded = 8;

}  // namespace

RepeatedSteps::RepeatedSteps(c10::Device device) : device_(device), pool_(MakeGraphPool(device)) {}

absl::StatusOr<LocalOutcome> RepeatedSteps::Run(const LocalRun& run, LocalOptimizer& optimizer) {
  const LocalSpec& spec = run.spec;
  BatchOrder order(run.data.count(), static_cast<size_t>(spec.batch), run.seed);
  const uint64_t steps = spec.steps > 0 ? static_cast<uint64_t>(spec.steps) : static_cast<uint64_t>(spec.epochs) * order.batches_per_epoch();
  int64_t examples = 0;
  for (uint64_t step = 0; step < steps; ++step) examples += static_cast<int64_t>(order.SizeAt(step));
  const at::TensorOptions host = at::TensorOptions().pinned_memory(device_.is_cuda());
  at::Tensor rows = at::empty({examples}, host.dtype(at::kLong));
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  for (uint64_t step = 0; step < steps; ++step) {
    const std::span<const uint32_t> positions = order.At(step);
    run.data.RowsOf(positions, row);
    row += positions.size();
  }
  rows = rows.to(device_, /*non_blocking=*/true);
  at::Tensor losses;
  {
    const at::NoGradGuard no_grad;
    const at::TensorOptions floats = run.model.trainable().options();
    losses = at::zeros({static_cast<int64_t>(steps)}, floats);
    if (!lr_.defined()) lr_ = at::empty({}, floats);
    lr_.fill_(spec.lr);
    optimizer.Begin(run.model);
  }
  if (recorded_.size() > kMaxRecorded) recorded_.clear();

  LocalOutcome outcome;
  int64_t first = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const auto size = static_cast<int64_t>(order.SizeAt(step));
    Recorded& recorded = recorded_[{size, optimizer.Settings(), UsesBf16(spec)}];
    {
      const at::NoGradGuard no_grad;
      Batch batch = run.data.Gather(rows.narrow(0, first, size));
      if (recorded.uses == 0) {
        recorded.batch = std::move(batch);
        recorded.loss = at::zeros({}, losses.options());
      } else {
        recorded.batch.x.copy_(batch.x);
        recorded.batch.y.copy_(batch.y);
      }
    }
    TRIB_RETURN_IF_ERROR(Step(run, recorded, optimizer));
    const at::NoGradGuard no_grad;
    losses.select(0, static_cast<int64_t>(step)).copy_(recorded.loss);
    first += size;
    ++outcome.steps;
    if (run.progress && !run.progress(static_cast<float>(step + 1) / static_cast<float>(steps))) {
      return Cancelled("{}: stopped after step {} of {}", spec.solver, step + 1, steps);
    }
  }
  const at::Tensor values = losses.to(at::kCPU, at::kDouble);
  double loss_sum = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const double value = values.const_data_ptr<double>()[step];
    if (!std::isfinite(value)) return LossNotFinite(value, step, steps, spec);
    loss_sum += value * static_cast<double>(order.SizeAt(step));
  }
  outcome.train_loss = examples > 0 ? loss_sum / static_cast<double>(examples) : 0;
  return outcome;
}

// As it is the first time, recorded the second, repeated from then on.
absl::Status RepeatedSteps::Step(const LocalRun& run, Recorded& recorded, LocalOptimizer& optimizer) {
  if (recorded.uses++ == 0 || refused_ || !DeviceGraph::CanRecord(device_)) return Body(run, recorded, optimizer);
  if (recorded.graph == nullptr) {
    try {
      absl::Status status;
      recorded.graph = DeviceGraph::Record(pool_, [&] { status = Body(run, recorded, optimizer); });
      TRIB_RETURN_IF_ERROR(status);
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const c10::Error& error) {
      refused_ = true;
      TRIB_LOG(warn, "a training step cannot be recorded for the GPU and is launched operation by operation: {}", FirstLine(error.what_without_backtrace()));
      return Body(run, recorded, optimizer);
    }
  }
  recorded.graph->Replay();
  return absl::OkStatus();
}

absl::Status RepeatedSteps::Body(const LocalRun& run, Recorded& recorded, LocalOptimizer& optimizer) {
  at::Tensor& weights = run.model.trainable();
  at::Tensor& gradient = run.model.gradient();
  gradient.zero_();
  TRIB_ASSIGN_OR_RETURN(const at::Tensor loss, run.data.Loss(run.model.model().Forward(recorded.batch.x, /*training=*/true), recorded.batch));
  loss.backward();
  const at::NoGradGuard no_grad;
  recorded.loss.copy_(loss);
  optimizer.Step(weights, gradient, lr_);
  return absl::OkStatus();
}

}  // namespace tributary::client
