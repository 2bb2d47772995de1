// What mifa and fedvarp share: a row for every client, the Δ of its last counted update (0 before the first), and on the server the sum
// of all rows ("row_sum"). The commit replaces the contributors' rows in its own batch (algorithms.md §9).
// Source: MIFA: Gu et al., NeurIPS 2021, Alg. 1; FedVARP: Jhunjhunwala et al., UAI 2022.
#pragma once

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

enum class RowRule {
  kAfter,   // mifa: u = R, the mean of all rows once the new ones are in
  kBefore,  // fedvarp: u = mean over S of (Δ − row) + R, both from before
};

std::vector<ParamInfo> RowParams();
absl::StatusOr<std::unique_ptr<Strategy>> MakeRowStrategy(const StrategySpec& spec, RowRule rule);

}  // namespace tributary::aggregator
