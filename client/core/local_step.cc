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

}  // namespace tributary::client
