#include "aggregator/core/planners/capacity.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace tributary::aggregator {

absl::StatusOr<ServiceCapacity> CapacityFromCurve(std::span<const CalibrationPoint> curve) {
  if (curve.size() < 2) return InvalidArgument("calibration curve: expected at least 2 points, got {}", curve.size());
  for (size_t i = 0; i < curve.size(); ++i) {
    const CalibrationPoint& point = curve[i];
    if (!std::isfinite(point.rate) || !std::isfinite(point.seconds) || point.rate <= 0 || point.seconds <= 0) {
      return InvalidArgument("calibration curve, point {}: expected a finite rate and time above 0, got {} updates/s and {} s", i,
                             point.rate, point.seconds);
    }
    if (i > 0 && point.rate <= curve[i - 1].rate) {
      return InvalidArgument("calibration curve, point {}: expected a rate above the one before, {}, got {}", i, curve[i - 1].rate,
                             point.rate);
    }
  }
  const double bend = kKneeFactor * curve.front().seconds;
  size_t below = curve.size() - 1;  // the last point that is not above
  while (curve[below].seconds > bend) --below;  // ends at 0: the first point is never above itself
  ServiceCapacity capacity;
  if (below + 1 == curve.size()) {
    capacity = {.knee_rate = curve.back().rate, .knee_seconds = curve.back().seconds};
  } else {
    const CalibrationPoint& a = curve[below];
    const CalibrationPoint& b = curve[below + 1];
    const double part = (bend - a.seconds) / (b.seconds - a.seconds);
    capacity = {.knee_rate = std::lerp(a.rate, b.rate, part), .knee_seconds = bend, .bent = true};
  }
  capacity.updates = capacity.knee_rate * capacity.knee_seconds;
  return capacity;
}

LoadEstimator::LoadEstimator(absl::Duration window) : width_(window / kBuckets) {
  TRIB_CHECK(width_ > absl::ZeroDuration(), "window {} ns", absl::ToInt64Nanoseconds(window));
}

int64_t LoadEstimator::IndexOf(absl::Time at) const {
  absl::Duration rest;
  const int64_t index = absl::IDivDuration(at - absl::UnixEpoch(), width_, &rest);
  return rest < absl::ZeroDuration() ? index - 1 : index;
}

LoadEstimator::Bucket& LoadEstimator::At(int64_t index) {
  Bucket& bucket = buckets_[static_cast<size_t>((index % kBuckets + kBuckets) % kBuckets)];
  if (bucket.index != index) bucket = {.index = index};
  return bucket;
}

// Spreads the time since the last event over its buckets.
void LoadEstimator::Advance(absl::Time to) {
  if (!first_) {
    first_ = to;
    last_ = to;
  }
  if (to <= last_) return;
  const int64_t newest = IndexOf(to);
  for (int64_t index = std::max(IndexOf(last_), newest - kBuckets + 1); index <= newest; ++index) {
    const absl::Time begin = std::max(last_, absl::UnixEpoch() + width_ * index);
    const absl::Time end = std::min(to, absl::UnixEpoch() + width_ * (index + 1));
    const double seconds = std::max(absl::ToDoubleSeconds(end - begin), 0.0);
    Bucket& bucket = At(index);
    bucket.in_hand_s += seconds * static_cast<double>(in_hand_);
    bucket.busy_s += in_hand_ > 0 ? seconds : 0;
  }
  last_ = to;
}

void LoadEstimator::OnInHand(absl::Time at, int64_t updates) {
  Advance(at);
  in_hand_ = std::max<int64_t>(updates, 0);
}

void LoadEstimator::OnFolded(absl::Time at, int64_t updates) {
  Advance(at);
  At(IndexOf(last_)).folded += updates;
}

std::optional<LoadEstimator::Estimate> LoadEstimator::At(absl::Time now) {
  Advance(now);
  const int64_t newest = IndexOf(last_);
  Bucket sum;
  for (const Bucket& bucket : buckets_) {
    if (bucket.index <= newest - kBuckets || bucket.index > newest) continue;
    sum.in_hand_s += bucket.in_hand_s;
    sum.busy_s += bucket.busy_s;
    sum.folded += bucket.folded;
  }
  if (sum.folded == 0 || sum.busy_s <= 0) return std::nullopt;
  const absl::Time begin = std::max(*first_, absl::UnixEpoch() + width_ * (newest - kBuckets + 1));
  Estimate estimate;
  estimate.rate = static_cast<double>(sum.folded) / sum.busy_s;
  estimate.seconds = sum.in_hand_s / static_cast<double>(sum.folded);
  estimate.load = sum.in_hand_s / sum.busy_s;
  estimate.mean_load = sum.in_hand_s / absl::ToDoubleSeconds(last_ - begin);
  return estimate;
}

}  // namespace tributary::aggregator
