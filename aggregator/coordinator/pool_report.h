// What a worker pool has to say: reports to its owner, collected under the pool's lock and said without it, and the figures of its
// workers that planners and people read.
// Threads: values. Errors: none.
#pragma once

#include <absl/time/time.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "common/ids.h"

namespace tributary::aggregator {

struct PoolReport {
  enum class Kind { kFolded, kRefused, kLost } kind;
  uint32_t job = 0;
  UpdateId update;      // kFolded, kRefused
  std::string reason;   // kRefused, kLost
};

// Events per second, over an exponential window of kWindow: k of dataplane.md §9.
class RateMeter {
 public:
  static constexpr absl::Duration kWindow = absl::Seconds(10);
  void Count(absl::Time now) {
    rate_ = At(now) + 1 / absl::ToDoubleSeconds(kWindow);
    last_ = now;
  }
  double At(absl::Time now) const { return rate_ == 0 ? 0 : rate_ * std::exp(-absl::FDivDuration(now - last_, kWindow)); }

 private:
  double rate_ = 0;
  absl::Time last_;
};

// Of one worker, over all its seats.
struct WorkerTally {
  uint64_t folded = 0;
  RateMeter arrivals;
};

}  // namespace tributary::aggregator
