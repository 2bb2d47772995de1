// Measures a node's service capacity for one job's layout: MC of dataplane.md §9.1. A worker pool of its own is offered Poisson
// arrivals at rising rates; E at each rate is the mean time from an update's arrival to its being folded, waiting included (E is the
// time in hand, capacity.h). The offering is open: an update that finds no slot has arrived all the same.
// Payloads are written once and offered again and again: what ingress does to bring them here is not in E.
// Blocks for about `step` a rate, at most kMaxRates of them. Do not run it beside a federation: it takes the cores it measures.
// Errors: as WorkerPool and ObjectPool; UNAVAILABLE when workers lose the sums.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <vector>

#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/planners/capacity.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

struct CalibrationOptions {
  std::string worker_program;
  uint32_t workers = 1;
  std::string strategy = "fedavg";
  TensorLayout layout;
  Arithmetic arithmetic = Arithmetic::kFloat64;
  PoolHierarchy hierarchy;              // its timing should be eager: what waits by choice would count
  size_t pool_bytes = size_t{512} << 20;  // for updates; 2 to kMaxSlots of them are used
  absl::Duration step = absl::Seconds(1);  // > 0
  uint64_t seed = 1;
};

struct Calibration {
  static constexpr size_t kMaxRates = 24;
  static constexpr size_t kMaxSlots = 64;
  double lone_seconds = 0;              // median time of an update that has the workers to itself
  std::vector<CalibrationPoint> curve;
  ServiceCapacity capacity;
};
absl::StatusOr<Calibration> CalibrateNode(const CalibrationOptions& options);

}  // namespace tributary::aggregator
