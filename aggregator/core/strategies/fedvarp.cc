// FedVarp: see rows.h.
#include "aggregator/core/rows.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedVarpParams() { return RowParams(); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedVarp(const StrategySpec& spec, const LocalSpec&) { return MakeRowStrategy(spec, RowRule::kBefore); }

}  // namespace tributary::aggregator
