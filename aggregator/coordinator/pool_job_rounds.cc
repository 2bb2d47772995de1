// The rounds of a job: what they begin with, a new plan in between, and the sums at their end. Contract: pool_job.h.
#include <algorithm>
#include <cstring>
#include <utility>

#include "aggregator/coordinator/pool_job.h"
#include "common/log.h"

namespace tributary::aggregator {

absl::Status PoolJob::CheckOpen() const {
  if (!lost_ && round_open_) return absl::OkStatus();
  return FailedPrecondition("job {}: no round is open{}", options_.job, lost_ ? " (its sums were lost)" : "");
}

absl::Status PoolJob::BeginRound(uint32_t round, const RoundGoals& goals) {
  if (const size_t left = queued_entries(); left != 0) {
    return FailedPrecondition("job {}: round {} cannot begin, {} updates are under way", options_.job, round, left);
  }
  if (goals.leaves.size() > options_.hierarchy.leaves) {
    return InvalidArgument("job {}: round {}: expected goals for at most {} leaves, got {}", options_.job, round, options_.hierarchy.leaves,
                           goals.leaves.size());
  }
  // The workers sleep as far as this job goes: everything pushed is done, and `done` was their last touch of the slab. Not so in a
  // tree that nobody has closed, whose partials may be on their way: it is left alone. And without reuse nothing is used again.
  const bool busy = tree_ && !lost_ && round_open_ && !tree_->untouched() && !readable();
  if (lost_ || busy || (tree_ && !options_.hierarchy.reuse && used_)) {
    if (!lost_) EndSeats();
    const absl::Status made = MakeSeats();
    lost_ = !made.ok();  // and may be tried again
    if (!made.ok()) return Annotate(made, fmt::format("job {}", options_.job));
    opened_ = false;
  }
  round_ = round;
  round_open_ = true;
  hurry_ = false;
  goals_ = goals;
  counted_ = {};
  BeginLap(std::nullopt);
  first_lap_ = lap_;
  if (!opened_) Open();
  return absl::OkStatus();
}

// ---- a new plan within the round ----

WorkerPool::RoundProgress PoolJob::Progress() const {
  WorkerPool::RoundProgress progress;
  for (uint32_t i = 0; i < tree_->leaves(); ++i) {
    const Seat& seat = seats_.at(i);
    // One that was given all it is to get may have sent its partial: nothing can be added to that.
    const bool open = tree_->open_leaf(i) && (!seat.goal || seat.assigned < *seat.goal);
    progress.leaves.push_back({.taken = seat.assigned, .open = open, .free = seat.assigned == 0 && tree_->may_open(i)});
  }
  progress.top = tree_->top().has_value();
  return progress;
}

absl::Status PoolJob::CheckGoals(const RoundGoals& goals, const WorkerPool::RoundProgress& progress) const {
  if (goals.leaves.size() > progress.leaves.size()) {
    return InvalidArgument("job {}: round {}: expected goals for at most {} leaves, got {}", options_.job, round_, progress.leaves.size(),
                           goals.leaves.size());
  }
  for (size_t i = 0; i < progress.leaves.size(); ++i) {
    const WorkerPool::LeafProgress& leaf = progress.leaves[i];
    const uint64_t goal = i < goals.leaves.size() ? goals.leaves[i] : 0;
    if (goal < leaf.taken || (goal > leaf.taken && !leaf.open && !leaf.free)) {
      return InvalidArgument("job {}: round {}, leaf {}: expected a goal of {}{}, got {}", options_.job, round_, i, leaf.taken,
                             leaf.open || leaf.free ? " or more" : ", which it has", goal);
    }
  }
  return absl::OkStatus();
}

absl::Status PoolJob::Replan(const WorkerPool::RoundPlanFunction& plan) {
  TRIB_RETURN_IF_ERROR(CheckOpen());
  if (!tree_ || tree_->closed() || lap_ != first_lap_) {
    return FailedPrecondition("job {}: round {} cannot be planned anew: {}", options_.job, round_, tree_ ? "its sums were read" : "it has no tree");
  }
  const WorkerPool::RoundProgress progress = Progress();
  TRIB_ASSIGN_OR_RETURN(RoundGoals goals, plan(progress));
  TRIB_RETURN_IF_ERROR(CheckGoals(goals, progress));
  while (!goals.leaves.empty() && goals.leaves.back() == 0) goals.leaves.pop_back();
  const absl::Time now = context_->clock.Now();
  for (uint32_t i = 0; i < tree_->leaves() && !lost_; ++i) {
    const uint32_t goal = i < goals.leaves.size() ? goals.leaves[i] : 0;
    Seat& seat = seats_.at(i);
    if (seat.goal == goal) continue;
    if (progress.leaves[i].free) {
      seat.goal = goal;
      if (goal == 0) continue;
      queues_.at(i).arrivals.OnRoundOpened(now, goal);
      Execute(tree_->Open(i));
    } else if (progress.leaves[i].open) {
      seat.goal = goal;
      if (goal == 0) {
        Execute(tree_->Drop(i));
      } else {
        SetRole(i, SeatRole::kLeaf, 0);
      }
    }
  }
  if (lost_) return CheckOpen();
  goals_.leaves = std::move(goals.leaves);
  CountInHand(now);
  for (auto& [number, queue] : queues_) Judge(queue, now);
  CountInHand(now);
  return absl::OkStatus();
}

// ---- hurry, updates, sums ----

void PoolJob::Hurry() {
  if (lost_ || hurry_ || !round_open_) return;
  hurry_ = true;
  for (auto& [number, seat] : seats_) {
    if (seat.role_lap == lap_ && seat.role != SeatRole::kParked) SetRole(number, seat.role, seat.children);
  }
  const absl::Time now = context_->clock.Now();
  CountInHand(now);
  for (auto& [number, queue] : queues_) Judge(queue, now);
  CountInHand(now);
}

absl::Status PoolJob::Fold(const UpdateId& update, const ObjectKey& key) {
  TRIB_RETURN_IF_ERROR(CheckOpen());
  if (const size_t queued = queued_entries(); queued >= objects_->capacity_slots()) {
    return ResourceExhausted("job {}: {} updates are queued, as many as the pool has slots", options_.job, queued);
  }
  if (!readable() && tree_->closed()) return FailedPrecondition("job {}: its sums are being read", options_.job);
  used_ = true;
  if (tree_ && tree_->closed()) BeginLap(tree_->top());
  const std::optional<uint32_t> seat = ChooseSeat();
  if (seat) {
    // Nobody knows how many more come to a top, and nothing is awaited for whom lazy timing could wait.
    const bool beyond = tree_ && tree_->top() == seat && options_.hierarchy.timing.kind != TimingKind::kEager;
    Enqueue(*seat, {update, key, 0, ""});
    if (beyond) Hurry();
  } else {
    waiting_.push_back({update, key, 0, ""});
  }
  // All slots are here: nothing more can come until something is folded.
  if (options_.hierarchy.timing.kind != TimingKind::kEager && queued_entries() >= objects_->capacity_slots()) Hurry();
  return absl::OkStatus();
}

absl::Status PoolJob::StartReading() {
  TRIB_RETURN_IF_ERROR(CheckOpen());
  if (const size_t left = queued_entries(); left != 0) {
    return FailedPrecondition("job {}: expected nothing under way, got {} updates", options_.job, left);
  }
  if (!tree_ || tree_->closed()) return absl::OkStatus();
  std::vector<bool> has_updates;
  for (uint32_t i = 0; i < tree_->leaves(); ++i) {
    Seat& seat = seats_.at(i);
    has_updates.push_back(seat.assigned > 0);
    if (tree_->open_leaf(i)) seat.goal = seat.assigned;
  }
  hurry_ = true;
  Execute(tree_->Close(has_updates));
  return absl::OkStatus();
}

// The slab's own word for what is in it, beside ours.
std::string PoolJob::CheckTotals(const Seat& seat) const {
  const tb_slab_totals total = seat.slab.header().total;
  if (Counted{total.folded, total.digest} == counted_) return "";
  return fmt::format("expected sums of {} updates (digest {:016x}), worker {} has {} ({:016x})", counted_.updates, counted_.digest,
                     seat.worker, total.folded, total.digest);
}

absl::StatusOr<WorkerPool::Sums> PoolJob::ReadSums() {
  TRIB_RETURN_IF_ERROR(CheckOpen());
  WorkerPool::Sums sums;
  std::string wrong;
  const auto add = [&](Seat& seat) {
    if (seat.slab.header().fresh != 0) return false;
    if (wrong.empty()) wrong = CheckTotals(seat);
    sums.pieces.push_back({seat.shape.first_element, seat.shape.elements, seat.slab.state()});
    if (seat.shape.counters != 0) sums.counters = {seat.slab.counters(), seat.shape.counters};
    return true;
  };
  bool full = true;
  if (tree_) {
    const std::optional<uint32_t> top = tree_->top();
    full = top.has_value() && add(seats_.at(*top));
  } else {
    for (auto& [number, seat] : seats_) full = full && add(seat);
  }
  if (!full) return FailedPrecondition("job {}: nothing was folded in round {}", options_.job, round_);
  if (!wrong.empty()) {
    Lose(wrong);
    return CheckOpen();
  }
  return sums;
}

absl::Status PoolJob::WriteSums(std::span<const std::byte> state, std::span<const int64_t> counters) {
  const TensorLayout& layout = options_.layout;
  const size_t element_bytes = reducer_->state_bytes_per_element();
  if (lost_ || !round_open_ || queued_entries() != 0) {
    return FailedPrecondition("job {}: sums are restored right after BeginRound only", options_.job);
  }
  if (state.size() != layout.float_count() * element_bytes || counters.size() != layout.counter_count()) {
    return InvalidArgument("job {}: expected {} bytes of sums and {} counters, got {} and {}", options_.job,
                           layout.float_count() * element_bytes, layout.counter_count(), state.size(), counters.size());
  }
  bool unused = counted_ == Counted{} && (!tree_ || (tree_->untouched() && !tree_->top()));
  for (auto& [number, seat] : seats_) unused = unused && seat.slab.header().fresh != 0 && seat.assigned == 0;
  if (!unused) return FailedPrecondition("job {}: the slab of round {} is in use", options_.job, round_);
  const auto write = [&](Seat& seat) {
    if (seat.slab.state_bytes() != 0) {
      std::memcpy(seat.slab.state(), state.data() + seat.shape.first_element * element_bytes, seat.slab.state_bytes());
    }
    if (seat.shape.counters != 0) std::memcpy(seat.slab.counters(), counters.data(), counters.size_bytes());
    seat.slab.header().fresh = 0;
  };
  if (!tree_) {
    for (auto& [number, seat] : seats_) write(seat);
    return absl::OkStatus();
  }
  uint32_t holder = 0;
  if (!options_.hierarchy.reuse) {
    holder = tree_->leaves();
    TRIB_RETURN_IF_ERROR(Annotate(StartSeat(holder), fmt::format("job {}", options_.job)));
  }
  write(seats_.at(holder));
  used_ = true;
  BeginLap(holder);
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
