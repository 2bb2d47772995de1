#include "aggregator/coordinator/round_planner.h"

#include <algorithm>
#include <utility>

#include "aggregator/coordinator/tree_state.h"
#include "aggregator/core/planners/scaling.h"

namespace tributary::aggregator {

RoundPlanner::RoundPlanner(const Hierarchy& hierarchy, const PlannerLimits& limits, int64_t round_updates, uint64_t slab_bytes)
    : hierarchy_(hierarchy),
      cores_(std::clamp<int64_t>(limits.workers, 1, TreeState::kMaxLeaves)),
      // Without reuse the top's sums are in a slab of its own.
      quota_(std::max<int64_t>(1, WorkerQuota(limits.sums_bytes, slab_bytes) - (hierarchy.reuse ? 0 : 1))),
      load_(hierarchy.plan.weight, hierarchy.plan.on),
      capacity_(limits.capacity) {
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
  if (!PlansByLoad() && !capacity_) return false;
  return !next_estimate_ || now >= *next_estimate_;
}

absl::Time RoundPlanner::replan_due() const {
  // Before the first round there is no plan to replace.
  return PlansByLoad() && next_estimate_ ? *next_estimate_ : absl::InfiniteFuture();
}

std::optional<double> RoundPlanner::residual() const { return capacity_ ? std::optional(*capacity_ - node_load_) : std::nullopt; }

void RoundPlanner::OnEstimate(absl::Time now, const std::optional<LoadEstimator::Estimate>& estimate, double node_load) {
  next_estimate_ = now + hierarchy_.plan.period;
  node_load_ = node_load;
  if (estimate) load_.Next(estimate->load);
}

PlanRequest RoundPlanner::Request(uint64_t round, int64_t updates, const NodeState& node) const {
  return {.key = {round, epoch_}, .updates = updates, .hierarchy = hierarchy_, .nodes = {&node, 1}};
}

NodeState RoundPlanner::Node(int64_t quota) const {
  return {.residual = residual().value_or(0), .load = load_.value(), .cores = cores_, .quota = quota};
}

absl::StatusOr<RoundGoals> RoundPlanner::Next(uint64_t round, int64_t updates) {
  RoundGoals goals;
  goals.updates = static_cast<uint64_t>(std::max<int64_t>(0, updates));
  plan_.reset();
  overloads_ = 0;
  const bool tree = pool_.shape == PoolShape::kTree;
  if (updates < 1 || (!tree && !capacity_)) return goals;
  ++epoch_;
  const NodeState node = Node(quota_);
  TRIB_ASSIGN_OR_RETURN(RoundPlan plan, PlanRound(Request(round, updates, node)));
  if (capacity_) {
    for (const RoundPlan::NodeShare& share : plan.nodes) overloads_ += share.overloads;
  }
  if (!tree) return goals;
  plan_ = std::move(plan);
  leaf_of_role_.clear();
  for (const RoundPlan::PlannedRole& role : plan_->roles) {
    if (role.role != Role::kLeaf) continue;
    leaf_of_role_.push_back(static_cast<uint32_t>(goals.leaves.size()));
    goals.leaves.push_back(static_cast<uint32_t>(role.goal));
  }
  leaves_ = static_cast<int64_t>(goals.leaves.size());
  return goals;
}

absl::StatusOr<RoundGoals> RoundPlanner::Replan(const WorkerPool::RoundProgress& progress) {
  if (!plan_) return FailedPrecondition("re-plan: expected a round that was planned, there is none");
  // Leaves of one node come first among the roles; above them is the root, if there are several.
  std::vector<RoleProgress> roles(plan_->roles.size());
  int64_t complete = 0, may_take = 0;
  std::vector<bool> planned(progress.leaves.size());
  for (size_t i = 0; i < leaf_of_role_.size(); ++i) {
    const uint32_t number = leaf_of_role_[i];
    if (number >= progress.leaves.size()) return Internal("re-plan: leaf {} of {}", number, progress.leaves.size());
    const WorkerPool::LeafProgress& leaf = progress.leaves[number];
    roles[i] = {.inputs = static_cast<int64_t>(leaf.taken), .begun = 1, .finished = !leaf.open};
    complete += leaf.open ? 0 : 1;
    may_take += leaf.open ? 1 : 0;
    planned[number] = true;
  }
  for (size_t i = leaf_of_role_.size(); i < roles.size(); ++i) roles[i] = {.inputs = complete, .begun = progress.top ? 1 : 0};
  std::vector<uint32_t> free;  // in rising order
  for (uint32_t i = 0; i < progress.leaves.size(); ++i) {
    if (!planned[i] && progress.leaves[i].free) free.push_back(i);
  }
  ++epoch_;
  // No more leaves than there are: a leaf that is complete is not opened again in its round.
  const int64_t quota = std::max<int64_t>(1, std::min<int64_t>(quota_, may_take + static_cast<int64_t>(free.size())));
  const NodeState node = Node(quota);
  TRIB_ASSIGN_OR_RETURN(RoundPlan next, tributary::aggregator::Replan(*plan_, roles, Request(plan_->key.round, plan_->target, node)));
  RoundGoals goals;
  goals.updates = static_cast<uint64_t>(plan_->target);
  goals.leaves.assign(progress.leaves.size(), 0);
  std::vector<uint32_t> numbers;
  size_t used = 0;
  for (const RoundPlan::PlannedRole& role : next.roles) {
    if (role.role != Role::kLeaf) continue;
    if (role.continues < 0 && used == free.size()) return Internal("re-plan of round {}: a leaf more than there are", next.key.round);
    numbers.push_back(role.continues >= 0 ? leaf_of_role_[static_cast<size_t>(role.continues)] : free[used++]);
    goals.leaves[numbers.back()] = static_cast<uint32_t>(role.goal);
  }
  plan_ = std::move(next);
  leaf_of_role_ = std::move(numbers);
  leaves_ = static_cast<int64_t>(leaf_of_role_.size());
  ++replans_;
  return goals;
}

}  // namespace tributary::aggregator
