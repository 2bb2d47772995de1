// When a role folds what is queued (dataplane.md §7.1): a pure decision, asked whenever something changes (an arrival, a fold that
// ended, the time it named) while the role's worker is idle.
//
//   eager    each arrival
//   lazy     when all inputs are there, or the deadline has passed (the reference arm)
//   batch:B  when B are queued, when all are there, or when the oldest has waited for `age`: the kernel folds up to 8 in one pass of
//            memory at nearly twice the rate (DECISIONS 1)
//   jit      as late as still makes it: from T̂_last − q·ê − m̂·depth − slack on, where T̂_last is the predicted last arrival or the
//            deadline, q the queue, ê the time an update, m̂ the time a merge and depth the merges above; all at once when all are there
// A passed deadline makes every policy fold what there is: closing a goal early is the coordinator's decision, being ready for it ours.
// Source: dataplane.md §7.1; jit after Jayaram et al., "Just-in-Time Aggregation for Federated Learning" (2022).
// Pure. Thread-compatible (policies: immutable).
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "common/job_spec.h"

namespace tributary::aggregator {

struct TimingInput {
  absl::Time now{};
  int64_t queued = 0;                             // arrived, not folded
  int64_t folded = 0;
  int64_t goal = 1;
  absl::Time oldest = absl::InfiniteFuture();     // arrival of the oldest queued one
  absl::Time deadline = absl::InfiniteFuture();
  // jit only:
  std::optional<absl::Time> predicted_last{};     // LastArrivalEstimator; absent: the deadline, and without one jit folds at once
  absl::Duration update_time{};                   // ê
  absl::Duration merge_time{};                    // m̂
  int64_t depth = 0;                              // levels of merging above this role
};

struct TimingDecision {
  int64_t fold = 0;                               // fold so many now (all queued ones), or
  absl::Time wait_until = absl::InfiniteFuture(); // ask again then at the latest; an arrival asks sooner
  bool operator==(const TimingDecision&) const = default;
};

class TimingPolicy {
 public:
  virtual ~TimingPolicy() = default;
  virtual TimingDecision Decide(const TimingInput& input) const = 0;
};
std::unique_ptr<TimingPolicy> MakeTimingPolicy(const TimingSpec& spec);

// T̂_last of the open round: when the last of its updates will have come.
// From earlier rounds: the time from opening to the last arrival (EWMA, as rounds of one job resemble each other). From this round:
// once that time has passed, or in the first round, the mean gap of this round's arrivals times the number still missing.
class LastArrivalEstimator {
 public:
  // `sample_weight` in (0, 1]: of the newest round.
  explicit LastArrivalEstimator(double sample_weight = 0.3) : sample_weight_(sample_weight) {}
  void OnRoundOpened(absl::Time at, int64_t updates);
  void OnArrival(absl::Time at);
  // nullopt: nothing is known yet (fewer than two arrivals in a first round).
  std::optional<absl::Time> Predict(absl::Time now) const;

 private:
  double sample_weight_;
  absl::Time opened_;
  int64_t expected_ = 0;
  int64_t arrived_ = 0;
  absl::Time first_arrival_;
  absl::Time last_arrival_;
  std::optional<double> last_offset_seconds_;  // EWMA over complete rounds
};

}  // namespace tributary::aggregator
