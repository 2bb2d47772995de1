#include "client/core/moe/router.h"

#include <utility>

namespace tributary::client {
namespace {

class Balanced : public Router {
 public:
  Balanced(std::unique_ptr<Router> router, std::unique_ptr<Router> loss) : Router(router->shape()), router_(std::move(router)), loss_(std::move(loss)) {}
  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    return router_->Select(logits, scores, context);
  }
  void EndStep(std::span<const int64_t> counts) override { router_->EndStep(counts); }
  GateRule gate_rule() const override { return router_->gate_rule(); }
  std::vector<double> LossWeights(std::span<const int64_t> counts) const override { return loss_->LossWeights(counts); }
  void SetGlobalLoad(MoeLayerLoad load) override { loss_->SetGlobalLoad(std::move(load)); }
  std::vector<float> state() const override { return router_->state(); }
  absl::Status SetState(std::span<const float> state) override { return router_->SetState(state); }
  std::vector<int64_t> margins() const override { return router_->margins(); }
  bool selects_top_k() const override { return router_->selects_top_k(); }
  bool server_owns_state() const override { return router_->server_owns_state(); }

 private:
  const std::unique_ptr<Router> router_, loss_;
};

}  // namespace

std::unique_ptr<Router> WithBalanceLoss(std::unique_ptr<Router> router, std::unique_ptr<Router> loss) {
  return std::make_unique<Balanced>(std::move(router), std::move(loss));
}

void Router::EndStep(std::span<const int64_t>) {}

std::vector<double> Router::LossWeights(std::span<const int64_t>) const { return {}; }

void Router::SetGlobalLoad(MoeLayerLoad) {}

absl::Status Router::SetState(std::span<const float> state) {
  if (state.empty()) return absl::OkStatus();
  return InvalidArgument("router: it keeps no state, got one of {} numbers", state.size());
}

}  // namespace tributary::client
