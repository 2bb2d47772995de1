// Minibatch SGD: for the gradient g of each batch, + weight_decay·w;  v = momentum·v + g;  w = w − lr·v, v beginning at 0 in each task
// (torch.optim.SGD without dampening; McMahan et al., AISTATS 2017, Algorithm 1, ClientUpdate, for momentum = weight_decay = 0).
#include <ATen/core/Tensor.h>

#include "client/torch/minibatch_steps.h"

namespace tributary::client {
namespace {

class Sgd final : public LocalOptimizer {
 public:
  explicit Sgd(const LocalSpec& spec) : spec_(spec) {}
  void Begin(TrainableModel& model) override {
    if (spec_.momentum != 0) velocity_ = model.Scratch(0);
  }
  void Step(at::Tensor& weights, at::Tensor& gradient, const at::Tensor& rate) override {
    if (spec_.weight_decay != 0) gradient.add_(weights, spec_.weight_decay);
    if (velocity_.defined()) velocity_.mul_(spec_.momentum).add_(gradient);
    const at::Tensor& direction = velocity_.defined() ? velocity_ : gradient;
    Descend(weights, direction, rate, spec_.lr);
  }
  std::string Settings() const override { return fmt::format("sgd|{}|{}", spec_.momentum, spec_.weight_decay); }

 private:
  const LocalSpec& spec_;
  at::Tensor velocity_;
};

}  // namespace

absl::StatusOr<LocalOutcome> RunSgd(const LocalRun& run) {
  Sgd sgd(run.spec);
  return RunMinibatches(run, sgd);
}

}  // namespace tributary::client
