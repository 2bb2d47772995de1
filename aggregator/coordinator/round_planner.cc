#include "aggregator/coordinator/round_planner.h"

#include <algorithm>

#include "aggregator/coordinator/tree_state.h"
#include "aggregator/core/planners/scaling.h"

namespace tributary::aggregator {

RoundPlanner::RoundPlanner(const Hierarchy& hierarchy, const PlannerLimits& limits, int64_t round_updates, uint64_t slab_bytes)
    : hierarchy_(hierarchy),
      cores_(std::clamp<int64_t>(limits.workers, 1, TreeState::kMaxLeaves)),
      // Without reuse the top's sums are in a slab of its own.
      quota_(std::max<int64_t>(1, WorkerQuota(limits.sums_bytes, slab_bytes) - (hierarchy.reuse ? 0 : 1))),
      load_(hierarchy.plan.weight, hierarchy.plan.on) {
  const bool fixed = hierarchy.plan.kind == PlanKind::kStatic;
  pool_.timing = hierarchy.timing;
  pool_.reuse = hierarchy.reuse;
  pool_.load_window = LoadWindow(hierarchy.plan.period);
  switch (hierarchy.shape) {
    case HierarchyShape::kFlat:
      pool_.shape = PoolShape::kFlat;
      break;
    case HierarchyShape::kTree: {
      pool_.shape = PoolShape::kTree;
      // As many as any plan can ask for: the load is unknown, so without a number all updates of a round count.
      const LeafLimits most{.cores = cores_, .quota = quota_, .updates = std::max<int64_t>(1, round_updates)};
      const double wanted = static_cast<double>(fixed ? hierarchy.plan.leaves : round_updates);
      pool_.leaves = static_cast<uint32_t>(LeavesFor(wanted, 1, most));
      break;
    }
    case HierarchyShape::kAuto:
    case HierarchyShape::kShard:
      pool_.shape = PoolShape::kShard;
      pool_.shards = fixed ? static_cast<uint32_t>(hierarchy.plan.leaves) : 0;
      break;
  }
}

bool RoundPlanner::EstimateDue(absl::Time now) const {
  if (hierarchy_.plan.kind == PlanKind::kStatic || pool_.shape != PoolShape::kTree) return false;
  return !next_estimate_ || now >= *next_estimate_;
}

void RoundPlanner::OnEstimate(absl::Time now, const std::optional<LoadEstimator::Estimate>& estimate) {
  next_estimate_ = now + hierarchy_.plan.period;
  if (estimate) load_.Next(estimate->load);
}

absl::StatusOr<RoundGoals> RoundPlanner::Next(uint64_t round, int64_t updates) {
  RoundGoals goals;
  goals.updates = static_cast<uint64_t>(std::max<int64_t>(0, updates));
  if (pool_.shape != PoolShape::kTree || updates < 1) return goals;
  const NodeState node{.load = load_.value(), .cores = cores_, .quota = quota_};
  TRIB_ASSIGN_OR_RETURN(const RoundPlan plan, PlanRound({.key = {round, ++epoch_}, .updates = updates, .hierarchy = hierarchy_, .nodes = {&node, 1}}));
  for (const RoundPlan::PlannedRole& role : plan.roles) {
    if (role.role == Role::kLeaf) goals.leaves.push_back(static_cast<uint32_t>(role.goal));
  }
  leaves_ = static_cast<int64_t>(goals.leaves.size());
  return goals;
}

}  // namespace tributary::aggregator
