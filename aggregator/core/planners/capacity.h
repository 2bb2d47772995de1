// What a node can take and how loaded it is (dataplane.md §9.1): arrival rate k (updates/s), time of an update E (s), load
// Q = k·E (updates in hand, Little's law), service capacity MC = k*·E(k*), residual capacity RC = MC − k·E. All four of Q, MC, RC
// and a placement's demand are counted in updates.
//
// E is the time from an update's arrival at the node until it is folded, *without* the time a worker sat idle because its timing
// policy chose to wait: only then does Q mean "updates in hand because the node is busy", grow when leaves are too few, and stay
// the same when only the policy changes. (Bare execution time would plan half a worker for each busy one with the fan-in of 2:
// DECISIONS.md has the figures.)
// Source: LIFL (MLSys 2024) §5, as restated in dataplane.md §9.
// Pure: times come with the events. Thread-compatible. Memory: fixed.
#pragma once

#include <absl/time/time.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "common/status.h"

namespace tributary::aggregator {

// One step of a calibration run: offered rate and the mean time of an update at it.
struct CalibrationPoint {
  double rate = 0;      // updates/s
  double seconds = 0;
};

struct ServiceCapacity {
  double updates = 0;       // MC
  double knee_rate = 0;     // k*
  double knee_seconds = 0;  // E(k*)
  bool bent = false;        // false: E never bent in the curve; MC is only a lower bound, calibrate with higher rates
};

inline constexpr double kKneeFactor = 1.2;  // E has bent where it exceeds this times E at the lowest rate (dataplane.md §9.1)

// MC of a measured curve. The knee is the crossing of E = kKneeFactor·E(low) between the last point below and the next one, found
// by linear interpolation: the note's "first point above" would make MC depend on how finely one measured, as E has no bound there.
// A single noisy point above, with a later one below again, is not taken for the knee.
// Errors: INVALID_ARGUMENT for fewer than two points, rates not rising, or a rate or time that is not finite and positive.
absl::StatusOr<ServiceCapacity> CapacityFromCurve(std::span<const CalibrationPoint> curve);

inline double ResidualCapacity(double service_capacity, double rate, double seconds) { return service_capacity - rate * seconds; }

// Sums over a sliding window in kBuckets steps: what is older than the window is forgotten a bucket at a time. Events may come a
// little late (they count into the newest bucket); time does not run backwards.
class WindowSum {
 public:
  static constexpr int64_t kBuckets = 16;
  explicit WindowSum(absl::Duration window);  // > 0
  void Add(absl::Time at, double value);
  struct Totals {
    double sum = 0;
    int64_t count = 0;
    absl::Duration covered;  // how much time sum and count stand for: from the first event on, at most the window
  };
  Totals At(absl::Time now) const;  // an earlier `now` than the last event counts as that event's time

 private:
  struct Bucket {
    int64_t index = -1;  // since the epoch, in bucket widths
    double sum = 0;
    int64_t count = 0;
  };
  int64_t IndexOf(absl::Time at) const;

  absl::Duration width_;
  std::optional<absl::Time> first_;
  absl::Time last_;
  int64_t newest_ = 0;
  std::array<Bucket, kBuckets> buckets_;
};

// k and E of one node, over the last `window` (the planning period is a good one).
class LoadEstimator {
 public:
  explicit LoadEstimator(absl::Duration window);
  void OnArrival(absl::Time at, int64_t updates = 1);
  // `busy`: arrival to folded, less the time the worker idled by policy (see above).
  void OnFolded(absl::Time at, absl::Duration busy);

  double Rate(absl::Time now) const;     // k, updates/s; 0 before the first arrival
  // E, seconds. With nothing folded in the window: the last known mean (a node that rested is as fast as before); 0 before any.
  double Seconds(absl::Time now) const;
  double Load(absl::Time now) const { return Rate(now) * Seconds(now); }  // Q

 private:
  WindowSum arrivals_;
  WindowSum folds_;
  double last_mean_ = 0;
};

}  // namespace tributary::aggregator
