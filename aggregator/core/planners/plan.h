// The plan of a round (dataplane.md §9.2): where each update goes, how many leaves fold a node's share, who merges what.
//
//   updates ──placement──> nodes ──⌈Q̄/I⌉, clamped──> leaves ──> one middle a node ──> one top
//
// A role that takes updates is a kLeaf; roles that take partials are kMiddle (one on a node with two or more leaves) and kTop (one,
// on the node with most updates, where two or more nodes are used, or the partial-taker of the only node). A node's only leaf acts
// as its middle and sends to the top; where it is the only role of all it acts as the top too. The root is the role without parent;
// only it divides. Roles are logical: with reuse a middle is the leaf that finished first. For shapes:
//   tree   L leaves a node, as above
//   shard  one leaf a node, whose L workers own a parameter range each and see every update of the node (PlannedRole::shards); the top
//          has as many as the leaf of its node
//   flat   one leaf in all, on the node that placement finds for the whole round's demand
// Source: LIFL (MLSys 2024) §5.2, with the formulas as dataplane.md §9.2 states them.
// Pure and deterministic: same request, same plan. Threads: values.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "aggregator/core/planners/hierarchy.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::aggregator {

// Q̄_t = h·Q̄_{t−1} + (1−h)·Q_t (on: history) or (1−h)·Q̄_{t−1} + h·Q_t (on: sample), Q̄_0 = Q_0.
// Computed as std::lerp, so that a constant load stays itself to the last bit: a rounding error above it would be a leaf more.
class Ewma {
 public:
  Ewma(double weight, EwmaSide on) : sample_weight_(on == EwmaSide::kHistory ? 1 - weight : weight) {}
  double Next(double sample);
  std::optional<double> value() const { return value_; }

 private:
  double sample_weight_;
  std::optional<double> value_;
};

// L_i = ⌈load / fan_in⌉, at least 1 and at most each of the limits; 0 for no updates.
struct LeafLimits {
  int64_t cores = 1;
  int64_t quota = 1;    // workers whose memory the node has room for
  int64_t updates = 0;  // assigned to the node: a leaf without an update would never finish
};
int64_t LeavesFor(double load, int64_t fan_in, const LeafLimits& limits);

// Goals of leaves that together take `remaining` more updates. `taken`: what each open leaf has already. Result: goals of those
// leaves, in their order, then of new ones, such that `leaves` of them (>= 1 if remaining > 0) take more, filled from the lowest
// level up (from nothing taken: they differ by at most 1, the larger first). Too many leaves: those with nothing taken go first
// (goal 0), then those with most (goal = taken: they close early). No more new leaves are opened than get an update.
std::vector<int64_t> ShareGoals(int64_t remaining, std::span<const int64_t> taken, int64_t leaves);

// Which plan: a job's rounds, and within a round each new plan has a higher epoch.
struct PlanKey {
  uint64_t round = 0;
  uint64_t epoch = 0;
  auto operator<=>(const PlanKey&) const = default;
};

enum class Role : uint8_t { kParked, kLeaf, kMiddle, kTop };
std::string_view RoleName(Role role);  // "parked", …

struct RoundPlan {
  struct PlannedRole {
    uint32_t node = 0;
    Role role = Role::kLeaf;
    int64_t goal = 0;        // inputs: updates of a leaf, partials of a middle or top
    int32_t parent = -1;     // in `roles`; -1: the root
    int64_t shards = 1;      // workers of this role, each with a parameter range
    int64_t taken = 0;       // leaf: updates it had when this plan was made
    bool closed = false;     // leaf: takes no more than `taken`
    int32_t continues = -1;  // the role of the plan before (of this round) that this one goes on with; -1: a new one
    bool operator==(const PlannedRole&) const = default;
  };
  struct NodeShare {
    uint32_t node = 0;
    int64_t updates = 0;
    int64_t overloads = 0;   // of those, placed beyond the node's residual capacity
    bool operator==(const NodeShare&) const = default;
  };
  PlanKey key{};
  int64_t target = 0;                // updates in all
  std::vector<NodeShare> nodes{};    // used ones, by rising id
  std::vector<PlannedRole> roles{};  // leaves of a node are consecutive
  std::vector<int32_t> route{};      // the leaf of each update, in order of arrival: target entries
  bool operator==(const RoundPlan&) const = default;

  bool overloaded() const;
  int64_t leaves() const;            // roles that take updates, shards counted
  int64_t partials_between_nodes() const;
};

struct NodeState {
  uint32_t node = 0;
  double residual = 0;             // RC, updates (capacity.h)
  std::optional<double> load{};    // Q̄; absent before the first estimate: then every assigned update counts as in hand
  int64_t cores = 1;
  int64_t quota = 1;
};

struct PlanRequest {
  PlanKey key{};
  int64_t updates = 0;             // the round's target, >= 1
  Hierarchy hierarchy{};
  std::span<const NodeState> nodes{};
};
// Errors: INVALID_ARGUMENT for no updates, no nodes, two of one id, cores or quota < 1, a residual or load that is not finite;
// INTERNAL if the placement names a node that is not there.
absl::StatusOr<RoundPlan> PlanRound(const PlanRequest& request);

// How far a role of a plan is.
struct RoleProgress {
  int64_t inputs = 0;              // of a leaf: updates handed to it; else partials sent to it, also while nobody fills it
  int64_t begun = 0;               // workers that took the role so far, those that died since included
  bool finished = false;           // its partial is published
};
// A new plan in the middle of a round: same placement (an update does not change its node), new leaf counts, goals for what has not
// come yet. `progress`: one entry for each role of `current`. Leaves that have something stay until they have sent it.
// Errors: INVALID_ARGUMENT for a key of another round or not above the current one, for progress that does not fit the plan, and
// what PlanRound refuses; NOT_FOUND if a node of the plan is missing from `nodes`.
absl::StatusOr<RoundPlan> Replan(const RoundPlan& current, std::span<const RoleProgress> progress, const PlanRequest& request);

// Static check: one root, every role reaches it, no cycles, goals are the numbers of children or add up to the target and to each
// node's share, the route fits the goals, leaves that can still take updates differ by at most 1 (or had more before).
// INVALID_ARGUMENT says what is wrong. What PlanRound and Replan return has passed it.
absl::Status CheckPlan(const RoundPlan& plan);

}  // namespace tributary::aggregator
