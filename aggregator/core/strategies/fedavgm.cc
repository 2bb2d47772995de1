// FedAvg with momentum on the server: v⁺ = β v + D, x⁺ = x + η_g v⁺, with D = Σ w_i Δ_i / Σ w_i and v = 0 at version 0
// (Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution"). Not fedavg_m, which is momentum on the clients.
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

constexpr const char* kMomentum = "momentum";
constexpr RealRange kBetaRange{.low = 0, .high = 1};

class FedAvgMStep final : public ServerStep {
 public:
  FedAvgMStep(double server_lr, double beta) : server_lr_(server_lr), beta_(beta) {}
  std::vector<std::string> state_vectors() const override { return {kMomentum}; }
  void ApplyBlock(const StepBlock& block, StrategyState& state) const override {
    double* momentum = state.vectors.at(kMomentum).data() + block.first;
    for (size_t i = 0; i < block.model.size(); ++i) {
      momentum[i] = beta_ * momentum[i] + block.sums[i] / block.divisor;
      block.model[i] += server_lr_ * momentum[i];
    }
  }

 private:
  double server_lr_;
  double beta_;
};

}  // namespace

std::vector<ParamInfo> FedAvgMParams() {
  return {ServerLrParam("1.0"),
          {.name = "beta", .default_value = "0.9", .range = kBetaRange.ToString(), .help = "factor on the old server momentum"},
          WeightingParam("examples")};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAvgM(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedAvgMParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const double beta = reader.Real("beta", kBetaRange);
  const bool uniform = reader.Choice("weighting") == "uniform";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = std::make_unique<FedAvgMStep>(server_lr, beta), .weights = MakeClaimedWeight(uniform)});
}

}  // namespace tributary::aggregator
