#include "aggregator/core/adaptive.h"

#include <cmath>

namespace tributary::aggregator {
namespace {

constexpr const char* kFirst = "m";
constexpr const char* kSecond = "v";
constexpr RealRange kBetaRange{.low = 0, .high = 1};
constexpr RealRange kTauRange{.low = 0, .low_open = true};
constexpr RealRange kInitialRange{.low = 0};

struct Settings {
  double server_lr = 0, beta1 = 0, beta2 = 0, tau = 0, initial_v = 0;
  bool bias_correction = false;
};

class AdaptiveStep final : public ServerStep {
 public:
  AdaptiveStep(SecondMoment rule, const Settings& settings) : rule_(rule), settings_(settings) {}
  std::vector<std::string> state_vectors() const override { return {kFirst, kSecond}; }
  double start_of(const std::string& name) const override { return name == kSecond ? settings_.initial_v : 0.0; }

  void ApplyBlock(const StepBlock& block, StrategyState& state) const override {
    double* first = state.vectors.at(kFirst).data() + block.first;
    double* second = state.vectors.at(kSecond).data() + block.first;
    const double beta1 = settings_.beta1, beta2 = settings_.beta2;
    const double round = static_cast<double>(block.facts->version);
    const double scale1 = settings_.bias_correction ? 1 - std::pow(beta1, round) : 1;
    const double scale2 = settings_.bias_correction && rule_ != SecondMoment::kAdagrad ? 1 - std::pow(beta2, round) : 1;
    for (size_t i = 0; i < block.model.size(); ++i) {
      const double step = block.sums[i] / block.divisor;
      const double square = step * step;
      first[i] = beta1 * first[i] + (1 - beta1) * step;
      second[i] = Second(second[i], square, beta2);
      block.model[i] += settings_.server_lr * (first[i] / scale1) / (std::sqrt(second[i] / scale2) + settings_.tau);
    }
  }

 private:
  double Second(double before, double square, double beta2) const {
    switch (rule_) {
      case SecondMoment::kAdam: return beta2 * before + (1 - beta2) * square;
      case SecondMoment::kYogi: {
        const double gap = before - square;
        const double sign = gap > 0 ? 1.0 : (gap < 0 ? -1.0 : 0.0);
        return before - (1 - beta2) * square * sign;
      }
      case SecondMoment::kAdagrad: return before + square;
    }
    return before;
  }

  SecondMoment rule_;
  Settings settings_;
};

}  // namespace

std::vector<ParamInfo> AdaptiveParams(SecondMoment rule) {
  const bool adagrad = rule == SecondMoment::kAdagrad;
  std::vector<ParamInfo> params = {
      ServerLrParam("0.01"),
      {.name = "beta1", .default_value = adagrad ? "0" : "0.9", .range = kBetaRange.ToString(), .help = "factor on the old first moment"},
      {.name = "tau", .default_value = "0.001", .range = kTauRange.ToString(), .help = "added to the root of the second moment"},
      {.name = "initial_v", .default_value = "0", .range = kInitialRange.ToString(), .help = "second moment before the first commit"},
      {.name = "bias_correction", .default_value = "false", .range = "true|false", .help = "divide the moments by 1 - beta^round (not in the paper)"},
      WeightingParam("examples")};
  if (!adagrad) {
    params.insert(params.begin() + 2, {.name = "beta2", .default_value = "0.99", .range = kBetaRange.ToString(), .help = "factor on the old second moment"});
  }
  return params;
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeAdaptive(const StrategySpec& spec, SecondMoment rule) {
  const std::vector<ParamInfo> params = AdaptiveParams(rule);
  ParamReader reader(spec, params);
  Settings settings;
  settings.server_lr = reader.Real("server_lr", kServerLrRange);
  settings.beta1 = reader.Real("beta1", kBetaRange);
  if (rule != SecondMoment::kAdagrad) settings.beta2 = reader.Real("beta2", kBetaRange);
  settings.tau = reader.Real("tau", kTauRange);
  settings.initial_v = reader.Real("initial_v", kInitialRange);
  settings.bias_correction = reader.Flag("bias_correction");
  const bool uniform = reader.Choice("weighting") == "uniform";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = std::make_unique<AdaptiveStep>(rule, settings), .weights = MakeClaimedWeight(uniform)});
}

}  // namespace tributary::aggregator
