// Which of a pool's worker processes run (dataplane.md §9.2, §9.3). Between plans workers are only promoted or parked. A plan starts those
// that it needs and that are not there, at once; and once a period it ends, coldest first, parked ones beyond what the plans of the last
// five periods would have used (core/planners/scaling.h). At the start all count as used, so none goes before five periods have passed.
// Without plans nothing changes: parked workers cost memory, no time.
// Pure. Thread-compatible.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <span>
#include <vector>

#include "aggregator/core/planners/scaling.h"

namespace tributary::aggregator {

class PoolScaler {
 public:
  // `workers`: the most that may run; `period` > 0.
  PoolScaler(uint32_t workers, absl::Duration period, absl::Time now);

  struct Worker {
    bool running = false;
    bool needed = false;  // by an open round of some job
  };
  struct Orders {
    std::vector<uint32_t> start;
    std::vector<uint32_t> end;
    bool operator==(const Orders&) const = default;
  };
  // After a plan. `workers`: all of them, by index.
  Orders OnPlan(absl::Time now, std::span<const Worker> workers);
  // As of the last OnPlan: since when the worker is parked; InfiniteFuture if it is not.
  absl::Time parked_since(uint32_t worker) const { return parked_since_[worker]; }

 private:
  const absl::Duration period_;
  WarmPool warm_;
  absl::Time next_;
  int64_t peak_ = 0;  // needed at one time, in this period
  std::vector<absl::Time> parked_since_;
};

}  // namespace tributary::aggregator
