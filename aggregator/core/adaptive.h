// The server step that fedadam, fedyogi and fedadagrad share: m⁺ = β₁m + (1−β₁)D, v⁺ by the rule, x⁺ = x + η_g m⁺/(√v⁺ + τ), with
// D = Σ w_iΔ_i/Σ w_i, m = 0 and v = `initial_v` before the first commit (Reddi et al., ICLR 2021, Algorithm 2).
// bias_correction (not in the paper): m⁺/(1 − β₁^r) and v⁺/(1 − β₂^r), r the version that is made, 1-based.
#pragma once

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

enum class SecondMoment { kAdam, kYogi, kAdagrad };

std::vector<ParamInfo> AdaptiveParams(SecondMoment rule);
absl::StatusOr<std::unique_ptr<Strategy>> MakeAdaptive(const StrategySpec& spec, SecondMoment rule);

}  // namespace tributary::aggregator
