// Mifa: see rows.h.
#include "aggregator/core/rows.h"

namespace tributary::aggregator {

std::vector<ParamInfo> MifaParams() { return RowParams(); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeMifa(const StrategySpec& spec, const LocalSpec&) { return MakeRowStrategy(spec, RowRule::kAfter); }

}  // namespace tributary::aggregator
