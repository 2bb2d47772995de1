// q-FedAvg: x⁺ = x + η_g · Σ F_i^q LΔ_i / Σ h_i, h_i = q F_i^{q−1}‖LΔ_i‖² + L F_i^q (Li et al., ICLR 2020, Algorithm 2; Δ = new − old).
// F_i is the client's own mean loss at x, before training ("initial_loss"; + 1e−10). q = 0 is FedAvg with equal weights. In sums: the
// fold's weight is F^q, and what divides is Σh/L, in the order of the clients' names.
#include <cmath>

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

constexpr const char* kNorm = "sum_squares";
constexpr double kInitialLossFloor = 1e-10;  // of the paper's code: F^{q−1} at F = 0
constexpr RealRange kQRange{.low = 0};
constexpr RealRange kLipschitzRange{.low = 0, .low_open = true};

double Loss(const Scalars& scalars) { return scalars.at(kInitialLoss) + kInitialLossFloor; }

class FairWeight final : public WeightRule {
 public:
  explicit FairWeight(double q) : q_(q) {}
  absl::StatusOr<double> Weight(const WeightInput& input) const override { return std::pow(Loss(input.scalars), q_); }

 private:
  double q_;
};

class FairStep final : public ServerStep {
 public:
  FairStep(double server_lr, double q, double lipschitz) : server_lr_(server_lr), q_(q), lipschitz_(lipschitz) {}
  absl::StatusOr<double> Divisor(const CommitFacts& facts) const override {
    double h = 0;
    for (const RoundContributor& contributor : facts.contributors) {
      const double loss = Loss(contributor.scalars);
      h += q_ * std::pow(loss, q_ - 1) * lipschitz_ * contributor.scalars.at(kNorm) + std::pow(loss, q_);
    }
    return h;
  }
  void ApplyBlock(const StepBlock& block, StrategyState&) const override {
    for (size_t i = 0; i < block.model.size(); ++i) block.model[i] += server_lr_ * (block.sums[i] / block.divisor);
  }

 private:
  double server_lr_;
  double q_;
  double lipschitz_;
};

}  // namespace

std::vector<ParamInfo> QFedAvgParams() {
  return {ServerLrParam("1.0"),
          {.name = "q", .default_value = "1.0", .range = kQRange.ToString(), .help = "fairness: weight of a client's loss; 0 is FedAvg with equal weights"},
          {.name = "lipschitz", .default_value = "auto", .range = "auto|" + kLipschitzRange.ToString(), .help = "L of the step size; auto: 1 / local.lr"}};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeQFedAvg(const StrategySpec& spec, const LocalSpec& local) {
  const std::vector<ParamInfo> params = QFedAvgParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const double q = reader.Real("q", kQRange);
  const double lipschitz = reader.RealOr("auto", 1.0 / local.lr, "lipschitz", kLipschitzRange);
  if (!local.client_lr.empty() && !reader.Has("lipschitz")) reader.Fail("lipschitz", "local.lr differs by client, so it must be given");
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = std::make_unique<FairStep>(server_lr, q, lipschitz),
                   .weights = std::make_unique<FairWeight>(q),
                   .scalars = {{.name = kInitialLoss, .low = 0, .help = "the client's mean loss at the model it started from"}},
                   .norm_scalar = kNorm});
}

}  // namespace tributary::aggregator
