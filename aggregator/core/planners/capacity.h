// What a node can take and how loaded it is (dataplane.md §9.1): rate k (updates/s), time of an update E (s), load Q = k·E (updates in
// hand, Little's law), service capacity MC = k*·E(k*), residual capacity RC = MC − k·E. Q, MC, RC and a placement's demand are all counted
// in updates.
//
// An update is *in hand* from when it could be folded until it is: since its arrival while its worker is busy or starting, and not
// while the worker idles because its timing policy chose to wait. E is the time in hand. Bare execution time will not do: no more
// updates can be executing than there are workers, so Q would never ask for more leaves than there are, and with a fan-in of 2 for
// half of them (DECISIONS.md has the figures).
// Source: LIFL (MLSys 2024) §5, as restated in dataplane.md §9.
// Pure: times come with the events. Thread-compatible. Memory: fixed.
#pragma once

#include <absl/time/time.h>

#include <algorithm>
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

// The window of a planning period's estimates: one shorter than a round sees only a part of it, perhaps the one without arrivals.
inline absl::Duration LoadWindow(absl::Duration plan_period) { return std::max(plan_period, absl::Seconds(30)); }

// k, E and Q of one node over a sliding window, which moves in kBuckets steps; what is older is forgotten. Events in the order of their
// times; a late one counts as of the newest.
class LoadEstimator {
 public:
  static constexpr int64_t kBuckets = 16;
  explicit LoadEstimator(absl::Duration window);  // > 0
  // From `at` on so many updates are in hand.
  void OnInHand(absl::Time at, int64_t updates);
  void OnFolded(absl::Time at, int64_t updates);

  struct Estimate {
    double rate = 0;       // k: updates folded per second of busy time
    double seconds = 0;    // E: time in hand of one update
    double load = 0;       // Q = k·E: in hand on average while anything was. What leaves are planned for: a rest between rounds does not dilute it
    double mean_load = 0;  // the same over all time of the window, rests included. What placement takes from MC
  };
  // nullopt: nothing was folded in the window. A rest teaches nothing; keep the estimate before.
  std::optional<Estimate> At(absl::Time now);

 private:
  struct Bucket {
    int64_t index = 0;      // since the epoch, in bucket widths
    double in_hand_s = 0;   // ∫ updates in hand dt
    double busy_s = 0;      // time with any
    int64_t folded = 0;
  };
  int64_t IndexOf(absl::Time at) const;
  Bucket& At(int64_t index);
  void Advance(absl::Time to);

  absl::Duration width_;
  std::optional<absl::Time> first_;
  absl::Time last_;
  int64_t in_hand_ = 0;
  std::array<Bucket, kBuckets> buckets_;
};

}  // namespace tributary::aggregator
