// What workers do under a plan (dataplane.md §9.3), as planner_sim.h plays it: PARKED → LEAF → MIDDLE → TOP → PARKED.
//
// A leaf that finishes is promoted in place where its parent is still nobody: same process, maps and sockets, and its partial *is* the
// parent's first input. Otherwise it sends its partial up and parks. Orders carry the plan's key (round, epoch) and are idempotent: a
// worker takes each step of a key once, and ignores what it is past.
// Of the simulation only: a node daemon decides the same from what its seats report (aggregator/coordinator/tree_state.h) and keeps
// no journal of orders.
// Pure and deterministic. Threads: values, RoleState is thread-compatible.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "aggregator/core/planners/plan.h"
#include "common/status.h"

namespace tributary::bench {

using aggregator::PlanKey;
using aggregator::Role;
using aggregator::RoleProgress;
using aggregator::RoundPlan;

// One worker's place in the life cycle.
class RoleState {
 public:
  RoleState() = default;  // parked, before any order
  // true: the role changed or goes on under the new key; false: the order is a repeat, or overtaken by a later one of its key.
  // FAILED_PRECONDITION, nothing changed: the order is of an older plan, or would take a middle or top of an open round a step down
  // (it holds partials of that round).
  absl::StatusOr<bool> Apply(PlanKey key, Role to);
  Role role() const { return role_; }
  std::optional<PlanKey> key() const { return key_; }

 private:
  Role role_ = Role::kParked;
  std::optional<PlanKey> key_;
};

struct WorkerView {
  uint32_t worker = 0;      // id, unique, > 0
  uint32_t node = 0;
  Role role = Role::kParked;
  std::optional<PlanKey> key{};  // of the last order it applied; none: a process that never had one
  int32_t planned = -1;     // the role of that plan it fills; -1: parked
  absl::Time parked_since{};  // while parked: the longer, the colder
};

struct RoleOrder {
  enum class Kind {
    kKeep,     // goes on under the new key (nothing to do but to tell it the key and a changed goal)
    kAssign,   // a parked worker, or one whose round is over, takes the role: no new process
    kPromote,  // finished, and rises in place with its partial as first input: what AfterFinish says, made up for if it was missed
    kStart,    // a new process
    kPark,
    kStop,     // ends the process
  };
  Kind kind = Kind::kKeep;
  uint32_t worker = 0;      // 0 for kStart
  uint32_t node = 0;
  Role role = Role::kParked;
  int32_t planned = -1;
  bool operator==(const RoleOrder&) const = default;
};

// Orders that make `workers` fit `plan`, by role. Applied, the same call gives only kKeep. A worker that died is simply missing from
// `workers`, and its role is staffed again (the new one replays its lanes): by a new process, as a worker that this very plan has parked
// would take the order for a late one; Replan, whose epoch is higher, can have the parked ones too.
// With reuse a role above leaves stays empty until a finished leaf rises to it (AfterFinish), unless nobody is left who could; without
// reuse every role gets a process of its own at once, and processes end with their role.
// `progress`: one entry a role of the plan; finished roles are not staffed. A partial for a role that nobody fills yet waits with the
// node's daemon (cold start, dataplane.md §5).
std::vector<RoleOrder> DiffPlan(const RoundPlan& plan, std::span<const RoleProgress> progress, std::span<const WorkerView> workers, bool reuse);

// What a worker does when its role has all inputs.
struct NextStep {
  enum class Kind { kReport, kPromote, kSend };  // divide and report; become the parent; send the partial to it and park (or stop)
  Kind kind = Kind::kReport;
  int32_t parent = -1;
  bool operator==(const NextStep&) const = default;
};
// `progress`: as for DiffPlan. Where somebody took the parent's role and died, nobody rises: the replacement replays what he had. Of a
// role of several shards each worker rises with its range.
NextStep AfterFinish(const RoundPlan& plan, std::span<const RoleProgress> progress, int32_t role, bool reuse);

// Hands arriving updates to leaves along the route; an update that was refused after all gives its place back.
class UpdateRouter {
 public:
  explicit UpdateRouter(const RoundPlan& plan);  // places of updates that leaves had already are taken
  // The leaf of the next update; nothing when every goal is met.
  std::optional<int32_t> Next();
  void GiveBack(int32_t role) { returned_.push_back(role); }

 private:
  std::vector<int32_t> route_;
  size_t next_ = 0;
  std::vector<int32_t> returned_;
};

}  // namespace tributary::bench
