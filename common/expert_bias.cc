#include "common/expert_bias.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace tributary {

absl::StatusOr<ExpertBiasRule> ExpertBiasRule::Of(const NamedParams& params) {
  ExpertBiasRule rule;
  TRIB_ASSIGN_OR_RETURN(const size_t direction, params.Choice("rule", {"sign", "proportional"}));
  rule.direction = direction == 0 ? Direction::kSign : Direction::kProportional;
  TRIB_ASSIGN_OR_RETURN(const size_t schedule, params.Choice("schedule", {"constant", "sqrt", "inverse"}));
  rule.schedule = schedule == 0 ? Schedule::kConstant : schedule == 1 ? Schedule::kSqrt : Schedule::kInverse;
  TRIB_ASSIGN_OR_RETURN(rule.step, params.Number("step", 0, 1e3));
  TRIB_ASSIGN_OR_RETURN(rule.scale_by_std, params.Flag("scale_by_std"));
  TRIB_ASSIGN_OR_RETURN(rule.clamp, params.Number("clamp", 0, 1e3));
  return rule;
}

void ExpertBiasRule::Move(uint64_t n, std::span<const int64_t> counts, double deviation, std::span<double> bias) const {
  TRIB_CHECK(n >= 1 && counts.size() == bias.size(), "step {}, {} counts for {} biases", n, counts.size(), bias.size());
  const double even = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0})) / static_cast<double>(counts.size());
  double rate = step;
  if (schedule == Schedule::kSqrt) rate /= std::sqrt(static_cast<double>(n));
  if (schedule == Schedule::kInverse) rate /= static_cast<double>(n);
  if (scale_by_std) rate *= deviation;
  if (!(even > 0) || !std::isfinite(rate)) return;
  for (size_t j = 0; j < bias.size(); ++j) {
    const double lack = even - static_cast<double>(counts[j]);
    const double towards = direction == Direction::kSign ? (lack > 0 ? 1.0 : lack < 0 ? -1.0 : 0.0) : lack / even;
    bias[j] = std::clamp(bias[j] + rate * towards, -clamp, clamp);
  }
}

}  // namespace tributary
