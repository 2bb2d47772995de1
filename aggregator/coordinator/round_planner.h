// A job's `hierarchy:` section carried out on this node: what the worker pool is opened with, and what each round begins with. Between
// plans every round has the same load estimate; once a period the caller brings a new one.
//
//   tree   plan static:L: L leaves; ewma: ⌈Q̄/I⌉; both clamped by the limits and the round's updates (plan.h)
//   shard  ranges are cut when the job opens: static:L for L workers, otherwise one for each worker. Fewer would save nothing, a
//          parked worker costs none, and to cut sums anew their memory would have to move
//   flat   one worker
// One node: every update is placed here.
// Thread-compatible. Errors: as PlanRound (plan.h).
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>

#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/planners/capacity.h"
#include "aggregator/core/planners/hierarchy.h"
#include "aggregator/core/planners/plan.h"
#include "common/status.h"

namespace tributary::aggregator {

struct PlannerLimits {
  int64_t workers = 1;           // >= 1: processes of the pool, which is what this node gives as cores
  uint64_t sums_bytes = 0;       // memory that one job's sums may take
};

class RoundPlanner {
 public:
  // `round_updates`: the most that a round takes; `slab_bytes`: one model's sums, > 0.
  RoundPlanner(const Hierarchy& hierarchy, const PlannerLimits& limits, int64_t round_updates, uint64_t slab_bytes);
  const PoolHierarchy& pool() const { return pool_; }
  // Whether the next round is to be planned with a new estimate. Never for a static plan.
  bool EstimateDue(absl::Time now) const;
  // nullopt: nothing was folded; the estimate before stays.
  void OnEstimate(absl::Time now, const std::optional<LoadEstimator::Estimate>& estimate);
  // Goals of a round of `updates` more updates. Each call is a new plan.
  absl::StatusOr<RoundGoals> Next(uint64_t round, int64_t updates);
  // Q̄, nullopt before the first estimate.
  std::optional<double> load() const { return load_.value(); }
  int64_t leaves() const { return leaves_; }  // of the last plan; 0 before it, and for other shapes than tree

 private:
  const Hierarchy hierarchy_;
  PoolHierarchy pool_;
  int64_t cores_ = 1, quota_ = 1;
  Ewma load_;
  std::optional<absl::Time> next_estimate_;
  uint64_t epoch_ = 0;
  int64_t leaves_ = 0;
};

}  // namespace tributary::aggregator
