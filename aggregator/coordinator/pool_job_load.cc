// What of a job is in hand, for planners (capacity.h). The daemon's end sees arrivals and folds; whether a seat idles in between because
// its timing wants to wait, it works out from the same pure policy that the seat asks.
#include <algorithm>
#include <limits>

#include "aggregator/coordinator/pool_job.h"

namespace tributary::aggregator {

void PoolJob::Judge(Queue& queue, absl::Time now) {
  queue.resting = false;
  queue.rest_until = absl::InfiniteFuture();
  if (queue.entries.empty() || hurry_) return;
  const Seat& seat = seats_.at(queue.seats.front());
  const tb_slab_header& header = seat.slab.header();
  TimingInput input;
  input.now = now;
  input.queued = static_cast<int64_t>(queue.entries.size());
  input.goal = std::numeric_limits<int64_t>::max() / 2;
  if (seat.goal) {
    input.goal = input.queued + std::max<int64_t>(0, int64_t{*seat.goal} - int64_t{seat.assigned});
    input.predicted_last = queue.arrivals.Predict(now);
  }
  input.oldest = queue.entries.front().arrived;
  if (const uint64_t handled = header.handled; handled != 0) {
    input.update_time = absl::Nanoseconds(static_cast<double>(header.busy_ns) / static_cast<double>(handled));
  }
  input.merge_time = input.update_time;
  input.depth = Depth(seat.role);
  const TimingDecision decision = timing_->Decide(input);
  queue.resting = decision.fold == 0;
  queue.rest_until = decision.wait_until;
}

void PoolJob::CountInHand(absl::Time now) {
  const auto in_hand = [this] {
    size_t sum = 0;
    for (const auto& [number, queue] : queues_) sum += queue.resting ? 0 : queue.entries.size();
    return static_cast<int64_t>(sum);
  };
  for (auto& [number, queue] : queues_) {
    if (!queue.resting || queue.rest_until > now) continue;
    queue.resting = false;  // until its next Judge
    load_.OnInHand(queue.rest_until, in_hand());
  }
  load_.OnInHand(now, in_hand());
}

std::optional<LoadEstimator::Estimate> PoolJob::Load() {
  const absl::Time now = context_->clock.Now();
  CountInHand(now);
  return load_.At(now);
}

// Merges between a role and the sums that are read, as the tree is told to be: one, or two with middles.
uint32_t PoolJob::Depth(SeatRole role) const {
  if (!tree_ || role == SeatRole::kTop) return 0;
  const uint32_t fan_in = options_.hierarchy.fan_in;
  const bool middles = fan_in != 0 && fan_in < options_.hierarchy.leaves;
  return role == SeatRole::kLeaf && middles ? 2 : 1;
}

}  // namespace tributary::aggregator
