// What a job's `hierarchy:` section means for its strategy: defaults filled in, the placement looked up, and refused with the reason
// what the strategy's trait cannot bear.
//
// A strategy that needs all updates at once (StrategyTrait::kNeedsAll: medians, trimmed means, Krum) must see them whole, in one
// place, and only when the last is there. So for it: shape auto means flat; tree is refused (middles see sums), and so is shard (a
// worker sees a range of the parameters, which the trait does not promise to be enough: Krum's distances are not); a timing is
// refused unless it is lazy; a static plan of several leaves is refused. Placement and reuse go with everything.
// Source: style.md §4, dataplane.md §7.2 and §9.4.
// Threads: values. Errors: INVALID_ARGUMENT naming the key, the strategy and the reason.
#pragma once

#include <cstdint>
#include <string_view>

#include "aggregator/core/planners/placement.h"
#include "aggregator/core/strategy.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::aggregator {

struct Hierarchy {
  HierarchyShape shape = HierarchyShape::kShard;  // never kAuto
  int64_t leaf_fan_in = 2;
  TimingSpec timing{};
  const PlannerEntry* placement = nullptr;        // of the table, or a test's
  PlanSpec plan{};
  bool reuse = true;
};

absl::StatusOr<Hierarchy> ResolveHierarchy(const HierarchySpec& spec, std::string_view strategy, StrategyTrait trait);

}  // namespace tributary::aggregator
