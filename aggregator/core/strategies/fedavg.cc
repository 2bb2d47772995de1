// FedAvg: x⁺ = x + η_g · Σ w_i Δ_i / Σ w_i (McMahan et al., AISTATS 2017, Algorithm 1; η_g = 1 there).
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

class FedAvgStep final : public ServerStep {
 public:
  explicit FedAvgStep(double server_lr) : server_lr_(server_lr) {}
  void ApplyBlock(const StepBlock& block, StrategyState&) const override {
    for (size_t i = 0; i < block.model.size(); ++i) block.model[i] += server_lr_ * block.mean[i];
  }

 private:
  double server_lr_;
};

class FedAvg final : public Strategy {
 public:
  FedAvg(double server_lr, bool uniform) : step_(server_lr), uniform_(uniform) {}
  std::unique_ptr<Reducer> MakeReducer(DType dtype, Arithmetic arithmetic) const override { return MakeMeanReducer(dtype, arithmetic); }
  const ServerStep& server_step() const override { return step_; }
  RoundPolicies MakePolicies(const CohortSpec& cohort) const override { return MakeSynchronousPolicies(cohort); }
  double Weight(double claimed) const override { return uniform_ ? 1.0 : claimed; }

 private:
  FedAvgStep step_;
  bool uniform_;
};

}  // namespace

std::vector<ParamInfo> FedAvgParams() { return {ServerLrParam("1.0"), WeightingParam("examples")}; }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAvg(const StrategySpec& spec) {
  const std::vector<ParamInfo> params = FedAvgParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const bool uniform = reader.Choice("weighting") == "uniform";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return std::make_unique<FedAvg>(server_lr, uniform);
}

}  // namespace tributary::aggregator
