// A job's `hierarchy:` section carried out on this node: what the worker pool is opened with, and what each round begins with. Between
// plans every round has the same load estimate; once a period the caller brings a new one, and if a round is open plans the rest of it
// anew.
//
//   tree   plan static:L: L leaves; ewma: ⌈Q̄/I⌉; both clamped by the limits and the round's updates (plan.h)
//   shard  ranges are cut when the job opens: static:L for L workers, otherwise one for each worker. Fewer would save nothing, a
//          parked worker costs none, and to cut sums anew their memory would have to move
//   flat   one worker
// One node: every update is placed here. Where its service capacity was calibrated, a round that asks for more than what is left of it
// (RC = MC − k·E of all jobs) is flagged as an overload, which turns nothing away.
// Thread-compatible. Errors: as PlanRound (plan.h).
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/planners/capacity.h"
#include "aggregator/core/planners/hierarchy.h"
#include "aggregator/core/planners/plan.h"
#include "common/status.h"

namespace tributary::aggregator {

struct PlannerLimits {
  int64_t workers = 1;           // >= 1: processes of the pool, which is what this node gives as cores
  uint64_t sums_bytes = 0;       // memory that one job's sums may take
  std::optional<double> capacity{};  // MC of the node for the job; absent: not calibrated
};

class RoundPlanner {
 public:
  // `round_updates`: the most that a round takes; `slab_bytes`: one model's sums, > 0.
  RoundPlanner(const Hierarchy& hierarchy, const PlannerLimits& limits, int64_t round_updates, uint64_t slab_bytes);
  const PoolHierarchy& pool() const { return pool_; }
  // Whether a new estimate is to be brought for the next round. Never where nobody would look at it: static plans, and other shapes than
  // tree, of a node that was not calibrated.
  bool EstimateDue(absl::Time now) const;
  // When it is to be brought and the rest of the open round planned anew. InfiniteFuture: never.
  absl::Time replan_due() const;
  // nullopt: nothing was folded; the estimate before stays. `node_load`: k·E of all jobs, rests included.
  void OnEstimate(absl::Time now, const std::optional<LoadEstimator::Estimate>& estimate, double node_load = 0);
  // Goals of a round of `updates` more updates. Each call is a new plan.
  absl::StatusOr<RoundGoals> Next(uint64_t round, int64_t updates);
  // The rest of the round that Next planned, by the estimate of now. Goals by leaf of the pool. FAILED_PRECONDITION before Next.
  absl::StatusOr<RoundGoals> Replan(const WorkerPool::RoundProgress& progress);
  // Q̄, nullopt before the first estimate.
  std::optional<double> load() const { return load_.value(); }
  int64_t leaves() const { return leaves_; }  // of the last plan; 0 before it, and for other shapes than tree
  uint64_t replans() const { return replans_; }  // within rounds
  std::optional<double> capacity() const { return capacity_; }
  std::optional<double> residual() const;        // RC as of the last estimate
  int64_t overloads() const { return overloads_; }  // updates of the open round beyond it

 private:
  PlanRequest Request(uint64_t round, int64_t updates, const NodeState& node) const;
  NodeState Node(int64_t quota) const;
  bool PlansByLoad() const { return hierarchy_.plan.kind == PlanKind::kEwma && pool_.shape == PoolShape::kTree; }

  const Hierarchy hierarchy_;
  PoolHierarchy pool_;
  int64_t cores_ = 1, quota_ = 1;
  Ewma load_;
  std::optional<absl::Time> next_estimate_;
  uint64_t epoch_ = 0;
  int64_t leaves_ = 0;
  uint64_t replans_ = 0;
  std::optional<double> capacity_;
  double node_load_ = 0;
  int64_t overloads_ = 0;
  std::optional<RoundPlan> plan_;      // of a tree's open round
  std::vector<uint32_t> leaf_of_role_;  // of its leaves: the pool's
};

}  // namespace tributary::aggregator
