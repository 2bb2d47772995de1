#include "client/core/local_step.h"

#include <absl/strings/numbers.h>

#include <cmath>

namespace tributary::client {

absl::StatusOr<double> ProximalFactor(const StrategySpec& strategy) {
  constexpr double kFedProxMu = 0.1;  // ours: the paper tunes it for each data set
  if (strategy.name != "fedprox") return 0.0;
  const auto at = strategy.params.find("mu");
  if (at == strategy.params.end()) return kFedProxMu;
  double mu = 0;
  if (!absl::SimpleAtod(at->second, &mu) || !std::isfinite(mu) || mu < 0) {
    return InvalidArgument("fedprox: mu: expected a number >= 0, got '{}'", at->second);
  }
  return mu;
}

double StepNorm(uint64_t steps, double lr, double momentum, double mu) {
  const auto t = static_cast<double>(steps);
  if (momentum > 0) return (t - momentum * (1 - std::pow(momentum, t)) / (1 - momentum)) / (1 - momentum);
  if (mu > 0) return (1 - std::pow(1 - lr * mu, t)) / (lr * mu);
  return t;
}

std::map<std::string, double> StrategyScalars(const StrategySpec& strategy, double step_norm, double initial_loss) {
  if (strategy.name == "fednova") return {{"step_norm", step_norm}};
  if (strategy.name == "qfedavg") return {{"initial_loss", initial_loss}};
  return {};
}

}  // namespace tributary::client
