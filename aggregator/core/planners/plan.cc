#include "aggregator/core/planners/plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

using PlannedRole = RoundPlan::PlannedRole;
using NodeShare = RoundPlan::NodeShare;

absl::Status CheckRequest(const PlanRequest& request) {
  if (request.updates < 1) return InvalidArgument("round plan: expected at least one update, got {}", request.updates);
  if (request.nodes.empty()) return InvalidArgument("round plan: expected at least one node, got none");
  std::map<uint32_t, bool> seen;
  for (const NodeState& node : request.nodes) {
    if (!seen.emplace(node.node, true).second) return InvalidArgument("round plan: expected each node once, got node {} twice", node.node);
    if (node.cores < 1 || node.quota < 1) {
      return InvalidArgument("round plan, node {}: expected at least one core and a quota of one worker, got {} and {}", node.node,
                             node.cores, node.quota);
    }
    if (!std::isfinite(node.residual) || !std::isfinite(node.load.value_or(0))) {
      return InvalidArgument("round plan, node {}: expected a finite residual capacity and load, got {} and {}", node.node, node.residual,
                             node.load.value_or(0));
    }
  }
  return absl::OkStatus();
}

int64_t WantedLeaves(const PlanRequest& request, const NodeState& node, int64_t updates) {
  if (updates == 0) return 0;
  if (request.hierarchy.shape == HierarchyShape::kFlat) return 1;
  const LeafLimits limits{.cores = node.cores, .quota = node.quota, .updates = updates};
  if (request.hierarchy.plan.kind == PlanKind::kStatic) return LeavesFor(static_cast<double>(request.hierarchy.plan.leaves), 1, limits);
  return LeavesFor(node.load.value_or(static_cast<double>(updates)), request.hierarchy.leaf_fan_in, limits);
}

// One node's part of a plan under construction.
struct NodeDraft {
  NodeShare share{};
  std::vector<PlannedRole> leaves{};
  int32_t middle_continues = -1;
  bool middle_holds_something = false;

  bool NeedsMiddle() const { return leaves.size() >= 2 || middle_holds_something; }
};

// The leaves that a node's share is folded by; `remaining`: updates that no leaf has yet. `leaves` come with what they have.
void DraftLeaves(const PlanRequest& request, const NodeState& node, int64_t remaining, NodeDraft* draft) {
  const int64_t wanted = WantedLeaves(request, node, remaining);
  std::vector<PlannedRole>& leaves = draft->leaves;
  if (request.hierarchy.shape != HierarchyShape::kTree) {
    if (leaves.empty()) leaves.push_back({.node = node.node, .role = Role::kLeaf, .shards = wanted});
    // Sums cannot be cut anew while they hold something.
    if (leaves.front().taken == 0) leaves.front().shards = std::max<int64_t>(wanted, 1);
    leaves.front().goal = leaves.front().taken + remaining;
    return;
  }
  std::vector<size_t> open;
  std::vector<int64_t> taken;
  for (size_t i = 0; i < leaves.size(); ++i) {
    leaves[i].goal = leaves[i].taken;
    if (leaves[i].closed) continue;
    open.push_back(i);
    taken.push_back(leaves[i].taken);
  }
  const std::vector<int64_t> goals = ShareGoals(remaining, taken, wanted);
  for (size_t i = 0; i < goals.size(); ++i) {
    if (i < open.size()) {
      leaves[open[i]].goal = goals[i];
      leaves[open[i]].closed = goals[i] == taken[i];
    } else {
      leaves.push_back({.node = node.node, .role = Role::kLeaf, .goal = goals[i]});
    }
  }
  std::erase_if(leaves, [](const PlannedRole& leaf) { return leaf.goal == 0; });
}

// Puts the tree above the leaves.
void Assemble(std::span<const NodeDraft> drafts, int32_t top_continues, RoundPlan* plan) {
  const auto most = std::max_element(drafts.begin(), drafts.end(),
                                     [](const NodeDraft& a, const NodeDraft& b) { return a.share.updates < b.share.updates; });
  const bool has_top = drafts.size() >= 2 || drafts.front().NeedsMiddle();
  std::vector<PlannedRole>& roles = plan->roles;
  std::vector<int32_t> below_top;
  for (const NodeDraft& draft : drafts) {
    plan->nodes.push_back(draft.share);
    const int32_t first = static_cast<int32_t>(roles.size());
    roles.insert(roles.end(), draft.leaves.begin(), draft.leaves.end());
    const int32_t end = static_cast<int32_t>(roles.size());
    if (!draft.NeedsMiddle() || drafts.size() == 1) {  // of the only node, the top takes the leaves' partials
      for (int32_t i = first; i < end; ++i) below_top.push_back(i);
      continue;
    }
    for (int32_t i = first; i < end; ++i) roles[static_cast<size_t>(i)].parent = end;
    roles.push_back({.node = draft.share.node, .role = Role::kMiddle, .goal = end - first, .continues = draft.middle_continues});
    below_top.push_back(end);
  }
  if (!has_top) return;
  for (const int32_t child : below_top) roles[static_cast<size_t>(child)].parent = static_cast<int32_t>(roles.size());
  roles.push_back({.node = most->share.node, .role = Role::kTop, .goal = static_cast<int64_t>(below_top.size()),
                   .shards = most->leaves.front().shards, .continues = top_continues});
}

// The leaves of each node's updates in their order: always the one that has least, ties by position.
std::map<uint32_t, std::vector<int32_t>> PlacesByNode(const RoundPlan& plan) {
  std::map<uint32_t, std::vector<std::pair<int64_t, int32_t>>> slots;
  for (size_t i = 0; i < plan.roles.size(); ++i) {
    const PlannedRole& role = plan.roles[i];
    if (role.role != Role::kLeaf) continue;
    for (int64_t level = role.taken; level < role.goal; ++level) slots[role.node].emplace_back(level, static_cast<int32_t>(i));
  }
  std::map<uint32_t, std::vector<int32_t>> places;
  for (auto& [node, levels] : slots) {
    std::sort(levels.begin(), levels.end());
    for (const auto& slot : levels) places[node].push_back(slot.second);
  }
  return places;
}

// `arrivals`: the nodes of the updates still to come, in order. What leaves have already comes first in the route.
void FillRoute(std::span<const uint32_t> arrivals, RoundPlan* plan) {
  for (size_t i = 0; i < plan->roles.size(); ++i) {
    if (plan->roles[i].role == Role::kLeaf) plan->route.insert(plan->route.end(), static_cast<size_t>(plan->roles[i].taken), static_cast<int32_t>(i));
  }
  const auto places = PlacesByNode(*plan);
  std::map<uint32_t, size_t> next;
  const auto take = [&](uint32_t node) {
    const auto found = places.find(node);
    if (found == places.end() || next[node] == found->second.size()) return false;
    plan->route.push_back(found->second[next[node]++]);
    return true;
  };
  for (const uint32_t node : arrivals) take(node);
  for (const auto& entry : places) {  // more than came in order: places given back
    while (take(entry.first)) {
    }
  }
}

absl::StatusOr<std::vector<Placed>> Place(const PlanRequest& request) {
  std::vector<PlacementNode> nodes;
  for (const NodeState& node : request.nodes) nodes.push_back({.node = node.node, .residual = node.residual});
  std::sort(nodes.begin(), nodes.end(), [](const PlacementNode& a, const PlacementNode& b) { return a.node < b.node; });
  TRIB_CHECK(request.hierarchy.placement != nullptr, "an unresolved hierarchy");
  const std::unique_ptr<Placer> placer = request.hierarchy.placement->make(nodes);
  std::vector<Placed> placed;
  if (request.hierarchy.shape == HierarchyShape::kFlat) {
    placed.assign(static_cast<size_t>(request.updates), placer->Place(static_cast<double>(request.updates)));
  } else {
    placed.reserve(static_cast<size_t>(request.updates));
    for (int64_t i = 0; i < request.updates; ++i) placed.push_back(placer->Place(1));
  }
  return placed;
}

}  // namespace

double Ewma::Next(double sample) {
  value_ = value_ ? std::lerp(*value_, sample, sample_weight_) : sample;
  return *value_;
}

int64_t LeavesFor(double load, int64_t fan_in, const LeafLimits& limits) {
  if (limits.updates <= 0) return 0;
  const int64_t most = std::max<int64_t>(1, std::min({limits.cores, limits.quota, limits.updates}));
  // The slack keeps a sum of rounding errors from opening a leaf.
  const double leaves = std::ceil(load / static_cast<double>(fan_in) - 1e-9);
  if (!(leaves < static_cast<double>(most))) return most;
  return std::max<int64_t>(1, static_cast<int64_t>(leaves));
}

std::vector<int64_t> ShareGoals(int64_t remaining, std::span<const int64_t> taken, int64_t leaves) {
  std::vector<int64_t> goals(taken.begin(), taken.end());
  if (remaining <= 0) return goals;
  std::vector<size_t> takers(taken.size());
  std::iota(takers.begin(), takers.end(), size_t{0});
  std::stable_sort(takers.begin(), takers.end(), [&](size_t a, size_t b) {
    return (taken[a] == 0) != (taken[b] == 0) ? taken[b] == 0 : taken[a] < taken[b];
  });
  const size_t wanted = static_cast<size_t>(std::max<int64_t>(leaves, 1));
  if (takers.size() > wanted) takers.resize(wanted);
  while (takers.size() < wanted) {
    takers.push_back(goals.size());
    goals.push_back(0);
  }
  // Water: raise the lowest ones to the next level until all is poured.
  std::stable_sort(takers.begin(), takers.end(), [&](size_t a, size_t b) { return goals[a] != goals[b] ? goals[a] < goals[b] : a < b; });
  size_t wet = 1;
  int64_t level = goals[takers[0]];
  while (wet < takers.size()) {
    const int64_t rise = goals[takers[wet]] - level;
    if (rise * static_cast<int64_t>(wet) > remaining) break;
    remaining -= rise * static_cast<int64_t>(wet);
    level += rise;
    ++wet;
  }
  takers.resize(wet);
  std::sort(takers.begin(), takers.end());
  for (size_t i = 0; i < wet; ++i) {
    goals[takers[i]] = level + remaining / static_cast<int64_t>(wet) + (static_cast<int64_t>(i) < remaining % static_cast<int64_t>(wet) ? 1 : 0);
  }
  while (goals.size() > taken.size() && goals.back() == 0) goals.pop_back();
  return goals;
}

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kParked:
      return "parked";
    case Role::kLeaf:
      return "leaf";
    case Role::kMiddle:
      return "middle";
    case Role::kTop:
      break;
  }
  return "top";
}

bool RoundPlan::overloaded() const {
  return std::any_of(nodes.begin(), nodes.end(), [](const NodeShare& share) { return share.overloads > 0; });
}

int64_t RoundPlan::leaves() const {
  int64_t count = 0;
  for (const PlannedRole& role : roles) count += role.role == Role::kLeaf ? role.shards : 0;
  return count;
}

int64_t RoundPlan::partials_between_nodes() const {
  int64_t count = 0;
  for (const PlannedRole& role : roles) count += role.parent >= 0 && roles[static_cast<size_t>(role.parent)].node != role.node;
  return count;
}

absl::StatusOr<RoundPlan> PlanRound(const PlanRequest& request) {
  TRIB_RETURN_IF_ERROR(CheckRequest(request));
  TRIB_ASSIGN_OR_RETURN(const std::vector<Placed> placed, Place(request));
  std::map<uint32_t, NodeShare> shares;
  std::vector<uint32_t> arrivals;
  for (const Placed& place : placed) {
    NodeShare& share = shares[place.node];
    share.node = place.node;
    ++share.updates;
    share.overloads += place.overload;
    arrivals.push_back(place.node);
  }
  std::vector<NodeDraft> drafts;
  for (const auto& entry : shares) {
    const NodeShare& share = entry.second;
    const auto node = std::find_if(request.nodes.begin(), request.nodes.end(), [&](const NodeState& n) { return n.node == share.node; });
    if (node == request.nodes.end()) {
      return Internal("placement '{}' chose node {}, which is not among the nodes", request.hierarchy.placement->name, share.node);
    }
    drafts.push_back({.share = share});
    DraftLeaves(request, *node, share.updates, &drafts.back());
  }
  RoundPlan plan{.key = request.key, .target = request.updates};
  Assemble(drafts, -1, &plan);
  FillRoute(arrivals, &plan);
  TRIB_RETURN_IF_ERROR(CheckPlan(plan));
  return plan;
}

absl::StatusOr<RoundPlan> Replan(const RoundPlan& current, std::span<const RoleProgress> progress, const PlanRequest& request) {
  TRIB_RETURN_IF_ERROR(CheckRequest(request));
  TRIB_RETURN_IF_ERROR(CheckPlan(current));
  if (request.key.round != current.key.round || request.key.epoch <= current.key.epoch) {
    return InvalidArgument("re-plan of round {}: expected that round and an epoch above {}, got round {} and epoch {}", current.key.round,
                           current.key.epoch, request.key.round, request.key.epoch);
  }
  if (request.updates != current.target || progress.size() != current.roles.size()) {
    return InvalidArgument("re-plan of round {}: expected {} updates and the progress of {} roles, got {} and {}", current.key.round,
                           current.target, current.roles.size(), request.updates, progress.size());
  }
  std::map<uint32_t, NodeDraft> drafts;
  for (const NodeShare& share : current.nodes) drafts[share.node].share = share;
  int32_t top_continues = -1;
  for (size_t i = 0; i < current.roles.size(); ++i) {
    const PlannedRole& role = current.roles[i];
    const RoleProgress& done = progress[i];
    if (done.inputs < 0 || done.inputs > role.goal || (done.finished && done.inputs != role.goal)) {
      return InvalidArgument("re-plan of round {}, role {} ({} on node {}): expected at most {} inputs, and all of them where finished, got {}",
                             current.key.round, i, RoleName(role.role), role.node, role.goal, done.inputs);
    }
    NodeDraft& draft = drafts[role.node];
    const int32_t continues = static_cast<int32_t>(i);
    if (role.role == Role::kLeaf) {
      draft.leaves.push_back({.node = role.node, .role = Role::kLeaf, .shards = role.shards, .taken = done.inputs,
                              .closed = done.finished || role.closed, .continues = continues});
    } else {
      // The only node's top stands where other nodes have their middle.
      if (role.role == Role::kMiddle || current.nodes.size() == 1) draft.middle_holds_something = done.inputs > 0 || done.begun > 0;
      (role.role == Role::kMiddle ? draft.middle_continues : top_continues) = continues;
    }
  }
  RoundPlan plan{.key = request.key, .target = current.target};
  std::vector<NodeDraft> ordered;
  int64_t came = 0;
  for (auto& [id, draft] : drafts) {
    const uint32_t wanted = id;
    const auto node = std::find_if(request.nodes.begin(), request.nodes.end(), [&](const NodeState& n) { return n.node == wanted; });
    if (node == request.nodes.end()) return NotFound("re-plan of round {}: node {} of the plan is gone", current.key.round, id);
    int64_t taken = 0;
    for (const PlannedRole& leaf : draft.leaves) taken += leaf.taken;
    came += taken;
    DraftLeaves(request, *node, draft.share.updates - taken, &draft);
    ordered.push_back(draft);
  }
  Assemble(ordered, top_continues, &plan);
  std::vector<uint32_t> arrivals;
  for (size_t i = static_cast<size_t>(came); i < current.route.size(); ++i) {
    arrivals.push_back(current.roles[static_cast<size_t>(current.route[i])].node);
  }
  FillRoute(arrivals, &plan);
  TRIB_RETURN_IF_ERROR(CheckPlan(plan));
  return plan;
}

}  // namespace tributary::aggregator
