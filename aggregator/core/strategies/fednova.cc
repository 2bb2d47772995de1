// FedNova: x⁺ = x + η_g · (Σ p_i‖a_i‖₁) · Σ p_i Δ_i/‖a_i‖₁, p over the participants (Wang et al., NeurIPS 2020).
// The update carries ‖a_i‖₁ of the steps it was made with ("step_norm"). In sums: the fold's weight is n_i/‖a_i‖₁, and what divides
// is (Σn)²/Σ n‖a‖₁, in the order of the clients' names, so that it does not depend on the order of arrival.
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

class NovaWeight final : public WeightRule {
 public:
  explicit NovaWeight(bool uniform) : uniform_(uniform) {}
  absl::StatusOr<double> Weight(const WeightInput& input) const override {
    return (uniform_ ? 1.0 : input.claimed) / input.scalars.at(kStepNorm);
  }

 private:
  bool uniform_;
};

class NovaStep final : public ServerStep {
 public:
  NovaStep(double server_lr, bool uniform) : server_lr_(server_lr), uniform_(uniform) {}
  absl::StatusOr<double> Divisor(const CommitFacts& facts) const override {
    double examples = 0;
    double steps = 0;
    for (const RoundContributor& contributor : facts.contributors) {
      const double n = uniform_ ? 1.0 : contributor.claimed;
      examples += n;
      steps += n * contributor.scalars.at(kStepNorm);
    }
    return examples * examples / steps;
  }
  void ApplyBlock(const StepBlock& block, StrategyState&) const override {
    for (size_t i = 0; i < block.model.size(); ++i) block.model[i] += server_lr_ * (block.sums[i] / block.divisor);
  }

 private:
  double server_lr_;
  bool uniform_;
};

}  // namespace

std::vector<ParamInfo> FedNovaParams() { return {ServerLrParam("1.0"), WeightingParam("examples")}; }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedNova(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedNovaParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const bool uniform = reader.Choice("weighting") == "uniform";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = std::make_unique<NovaStep>(server_lr, uniform),
                   .weights = std::make_unique<NovaWeight>(uniform),
                   .scalars = {{.name = kStepNorm, .low = 0, .low_open = true, .help = "L1 norm of the local steps' factors a_i (t for t plain SGD steps)"}}});
}

}  // namespace tributary::aggregator
