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

WindowSum::WindowSum(absl::Duration window) : width_(window / kBuckets) {
  TRIB_CHECK(width_ > absl::ZeroDuration(), "window {} ns", absl::ToInt64Nanoseconds(window));
}

int64_t WindowSum::IndexOf(absl::Time at) const {
  absl::Duration rest;
  const int64_t index = absl::IDivDuration(at - absl::UnixEpoch(), width_, &rest);
  return rest < absl::ZeroDuration() ? index - 1 : index;
}

void WindowSum::Add(absl::Time at, double value) {
  if (!first_) {
    first_ = at;
    last_ = at;
  }
  last_ = std::max(last_, at);
  newest_ = IndexOf(last_);
  Bucket& bucket = buckets_[static_cast<size_t>((newest_ % kBuckets + kBuckets) % kBuckets)];
  if (bucket.count == 0 || bucket.index != newest_) bucket = {.index = newest_};
  bucket.sum += value;
  ++bucket.count;
}

WindowSum::Totals WindowSum::At(absl::Time now) const {
  Totals totals;
  if (!first_) return totals;
  now = std::max(now, last_);
  const int64_t current = IndexOf(now);
  for (const Bucket& bucket : buckets_) {
    if (bucket.count == 0 || bucket.index <= current - kBuckets) continue;
    totals.sum += bucket.sum;
    totals.count += bucket.count;
  }
  const absl::Time begin = absl::UnixEpoch() + width_ * (current - kBuckets + 1);
  // A burst at the very start must not stand for a rate without bound.
  totals.covered = std::max(now - std::max(begin, *first_), width_);
  return totals;
}

LoadEstimator::LoadEstimator(absl::Duration window) : arrivals_(window), folds_(window) {}

void LoadEstimator::OnArrival(absl::Time at, int64_t updates) { arrivals_.Add(at, static_cast<double>(updates)); }

void LoadEstimator::OnFolded(absl::Time at, absl::Duration busy) {
  folds_.Add(at, std::max(absl::ToDoubleSeconds(busy), 0.0));
  const WindowSum::Totals totals = folds_.At(at);
  last_mean_ = totals.sum / static_cast<double>(totals.count);
}

double LoadEstimator::Rate(absl::Time now) const {
  const WindowSum::Totals totals = arrivals_.At(now);
  return totals.count == 0 ? 0 : totals.sum / absl::ToDoubleSeconds(totals.covered);
}

double LoadEstimator::Seconds(absl::Time now) const {
  const WindowSum::Totals totals = folds_.At(now);
  return totals.count == 0 ? last_mean_ : totals.sum / static_cast<double>(totals.count);
}

}  // namespace tributary::aggregator
