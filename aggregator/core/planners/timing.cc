#include "aggregator/core/planners/timing.h"

#include <algorithm>
#include <cmath>

namespace tributary::aggregator {
namespace {

// Whether there is nothing to wait for any more.
bool IsComplete(const TimingInput& input) { return input.folded + input.queued >= input.goal || input.now >= input.deadline; }

class Eager final : public TimingPolicy {
 public:
  TimingDecision Decide(const TimingInput& input) const override { return {.fold = input.queued}; }
};

class Lazy final : public TimingPolicy {
 public:
  TimingDecision Decide(const TimingInput& input) const override {
    if (IsComplete(input)) return {.fold = input.queued};
    return {.wait_until = input.deadline};
  }
};

class Batch final : public TimingPolicy {
 public:
  Batch(int64_t size, absl::Duration age) : size_(size), age_(age) {}
  TimingDecision Decide(const TimingInput& input) const override {
    if (input.queued == 0) return {};
    const absl::Time too_old = input.oldest + age_;
    if (input.queued >= size_ || IsComplete(input) || input.now >= too_old) return {.fold = input.queued};
    return {.wait_until = std::min(too_old, input.deadline)};
  }

 private:
  int64_t size_;
  absl::Duration age_;
};

class Jit final : public TimingPolicy {
 public:
  explicit Jit(absl::Duration slack) : slack_(slack) {}
  TimingDecision Decide(const TimingInput& input) const override {
    if (input.queued == 0) return {};
    const absl::Time last = std::min(input.predicted_last.value_or(input.deadline), input.deadline);
    // Without any idea of the end there is no "just in time": better at once than never.
    const bool blind = last == absl::InfiniteFuture();
    const absl::Time begin = last - input.queued * input.update_time - input.depth * input.merge_time - slack_;
    if (blind || IsComplete(input) || input.now >= begin) return {.fold = input.queued};
    return {.wait_until = begin};
  }

 private:
  absl::Duration slack_;
};

}  // namespace

std::unique_ptr<TimingPolicy> MakeTimingPolicy(const TimingSpec& spec) {
  switch (spec.kind) {
    case TimingKind::kEager:
      return std::make_unique<Eager>();
    case TimingKind::kLazy:
      return std::make_unique<Lazy>();
    case TimingKind::kJit:
      return std::make_unique<Jit>(spec.slack);
    case TimingKind::kBatch:
      break;
  }
  return std::make_unique<Batch>(spec.batch, spec.age);
}

void LastArrivalEstimator::OnRoundOpened(absl::Time at, int64_t updates) {
  opened_ = at;
  expected_ = updates;
  arrived_ = 0;
}

void LastArrivalEstimator::OnArrival(absl::Time at) {
  if (arrived_ == 0) first_arrival_ = at;
  last_arrival_ = at;
  if (++arrived_ != expected_) return;
  const double offset = absl::ToDoubleSeconds(at - opened_);
  last_offset_seconds_ = last_offset_seconds_ ? std::lerp(*last_offset_seconds_, offset, sample_weight_) : offset;
}

std::optional<absl::Time> LastArrivalEstimator::Predict(absl::Time now) const {
  if (expected_ > 0 && arrived_ >= expected_) return last_arrival_;
  if (last_offset_seconds_) {
    const absl::Time usual = opened_ + absl::Seconds(*last_offset_seconds_);
    if (usual >= now) return usual;
  }
  if (arrived_ >= 2) {
    const absl::Duration gap = (last_arrival_ - first_arrival_) / (arrived_ - 1);
    return std::max(now, last_arrival_ + gap * (expected_ - arrived_));
  }
  // Late, and this round has no pace yet: any moment now.
  if (last_offset_seconds_) return now;
  return std::nullopt;
}

}  // namespace tributary::aggregator
