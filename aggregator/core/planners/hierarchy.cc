#include "aggregator/core/planners/hierarchy.h"

namespace tributary::aggregator {
namespace {

absl::Status RefuseForNeedsAll(const HierarchySpec& spec, std::string_view strategy) {
  const auto refuse = [strategy](std::string_view key, const std::string& why) {
    return InvalidArgument("hierarchy.{}: strategy '{}' needs all updates at once: {}", key, strategy, why);
  };
  if (spec.shape == HierarchyShape::kTree) {
    return refuse("shape", "the middles of a tree see only sums; expected auto or flat, got tree");
  }
  if (spec.shape == HierarchyShape::kShard) {
    return refuse("shape", "a shard sees only a range of the parameters; expected auto or flat, got shard");
  }
  if (spec.timing && spec.timing->kind != TimingKind::kLazy) {
    return refuse("timing", fmt::format("nothing can be folded before the last is there; expected lazy, got {}", TimingKindName(spec.timing->kind)));
  }
  if (spec.plan.kind == PlanKind::kStatic && spec.plan.leaves > 1) {
    return refuse("plan", fmt::format("each leaf would see a part of them; expected ewma or static:1, got static:{}", spec.plan.leaves));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Hierarchy> ResolveHierarchy(const HierarchySpec& spec, std::string_view strategy, StrategyTrait trait) {
  const bool needs_all = trait == StrategyTrait::kNeedsAll;
  if (needs_all) TRIB_RETURN_IF_ERROR(RefuseForNeedsAll(spec, strategy));
  Hierarchy hierarchy{.leaf_fan_in = spec.leaf_fan_in, .placement = FindPlanner(spec.placement), .plan = spec.plan, .reuse = spec.reuse};
  if (hierarchy.placement == nullptr) {
    // Of a job, a name that is not there is a wrong value. MakePlacer has the words.
    return InvalidArgument("hierarchy.placement: {}", MessageOf(MakePlacer(spec.placement, {}).status()));
  }
  hierarchy.shape = spec.shape;
  if (spec.shape == HierarchyShape::kAuto) hierarchy.shape = needs_all ? HierarchyShape::kFlat : HierarchyShape::kShard;
  hierarchy.timing = spec.timing.value_or(needs_all ? TimingSpec{.kind = TimingKind::kLazy} : TimingSpec{});
  return hierarchy;
}

}  // namespace tributary::aggregator
