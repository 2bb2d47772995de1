// AdamW (Loshchilov and Hutter, ICLR 2019, Algorithm 2; torch.optim.AdamW): m = β1·m + (1 − β1)·g;  v = β2·v + (1 − β2)·g²;  w = w − lr·weight_decay·w −
// lr·(m/(1 − β1^t)) / (√(v/(1 − β2^t)) + ε), m, v and t beginning at 0 in each task.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include "client/torch/minibatch_steps.h"

namespace tributary::client {
namespace {

class AdamW final : public LocalOptimizer {
 public:
  explicit AdamW(const LocalSpec& spec) : spec_(spec) {}
  void Begin(TrainableModel& model) override {
    first_ = model.Scratch(0);
    second_ = model.Scratch(1);
    power1_ = model.ScratchNumber(0).fill_(1);
    power2_ = model.ScratchNumber(1).fill_(1);
  }
  void Step(at::Tensor& weights, at::Tensor& gradient, const at::Tensor& rate) override {
    // Powers as tensors: a recorded step counts by itself.
    power1_.mul_(spec_.beta1);
    power2_.mul_(spec_.beta2);
    first_.mul_(spec_.beta1).add_(gradient, 1 - spec_.beta1);
    second_.mul_(spec_.beta2).addcmul_(gradient, gradient, 1 - spec_.beta2);
    if (spec_.weight_decay != 0) {
      if (rate.defined()) {
        weights.addcmul_(weights, rate, -spec_.weight_decay);
      } else {
        weights.mul_(1 - spec_.lr * spec_.weight_decay);
      }
    }
    at::Tensor denominator = (second_ / (1 - power2_)).sqrt_().add_(spec_.epsilon);
    const at::Tensor direction = denominator.reciprocal_().mul_(first_).div_(1 - power1_);
    Descend(weights, direction, rate, spec_.lr);
  }
  std::string Settings() const override { return fmt::format("adamw|{}|{}|{}|{}", spec_.beta1, spec_.beta2, spec_.epsilon, spec_.weight_decay); }

 private:
  const LocalSpec& spec_;
  at::Tensor first_, second_;    // m, v
  at::Tensor power1_, power2_;   // [] β1^t, β2^t
};

}  // namespace

absl::StatusOr<LocalOutcome> RunAdamW(const LocalRun& run) {
  AdamW adamw(run.spec);
  return RunMinibatches(run, adamw);
}

}  // namespace tributary::client
