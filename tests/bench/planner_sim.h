// Rounds on nodes of worker processes, in virtual time: a discrete-event simulation that runs the real planners (placement, plan, roles,
// scaling, timing, estimators of aggregator/core/planners) over modelled costs. One process, no clock, no threads; randomness only
// from the seeds of the traces.
//
// Closed loop: a round opens when the one before has its result; its updates come at the trace's offsets from there. So every arm of
// a comparison gets the same work, and an arm that is slow is slow for longer.
//
// The model: a leaf folds up to `max_pass` queued updates in one pass; a pass costs fold_s for the first and batch_part of that for
// each further one; where more workers of a node fold at once than its memory feeds, all slow down in proportion (taken at a pass's
// start). A partial costs merge_s at its parent and network_s between nodes. A process takes cold_start_s until it can work, a parked
// or promoted one warm_start_s. Not modelled: ingress, lanes, crashes, other jobs.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <span>
#include <vector>

#include "aggregator/core/planners/hierarchy.h"

namespace tributary::bench {

struct SimCosts {
  double fold_s = 0.052;
  double batch_part = 0.465;
  int64_t max_pass = 8;
  double merge_s = 0.052;
  double network_s = 0;
  double cold_start_s = 0.3206;
  double warm_start_s = 0.0064;
  double workers_fed = 8;      // by a node's memory
  double partial_bytes = 0;
};

// What counts as the load that leaves are planned for: updates in hand (capacity.h), or, to compare, only those in a pass.
enum class MeasuredLoad { kInHand, kExecuting };

struct SimOptions {
  size_t nodes = 1;
  int64_t cores = 16;              // a node: most leaves
  double capacity = 1e9;           // MC of a node, updates
  aggregator::Hierarchy hierarchy{};
  SimCosts costs{};
  MeasuredLoad measured = MeasuredLoad::kInHand;
  bool known_at_start = true;      // false: the first plan counts one update in hand, not all of them
};

using ArrivalTrace = std::vector<double>;  // of one round: seconds after its opening, rising

struct SimResult {
  std::vector<double> round_s;     // opening to result
  std::vector<double> tail_s;      // last arrival to result
  std::vector<int64_t> leaves;     // of the round's plan
  std::vector<int64_t> nodes_used;
  double elapsed_s = 0;
  double alive_worker_s = 0;       // processes × time, parked ones included
  double active_worker_s = 0;      // in a role, and starting up
  double busy_worker_s = 0;        // folding and merging
  int64_t starts = 0;
  int64_t passes = 0;
  int64_t partials_between_nodes = 0;
  double bytes_between_nodes = 0;
  int64_t replans = 0;
};

SimResult Simulate(const SimOptions& options, std::span<const ArrivalTrace> rounds);

}  // namespace tributary::bench
