#include "client/core/moe/capacity_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/suggest.h"

namespace tributary::client {

const std::vector<std::string>& CapacitySchedule::Kinds() {
  static const std::vector<std::string> kinds = {"none", "linear", "linear_reverse", "cosine", "cosine_reverse", "gaussian", "gaussian_reverse"};
  return kinds;
}

absl::StatusOr<CapacitySchedule> CapacitySchedule::Create(const std::string& kind, int64_t least, int64_t most) {
  const auto at = std::find(Kinds().begin(), Kinds().end(), kind);
  if (at == Kinds().end()) {
    return InvalidArgument("capacity schedule: expected one of {}, got '{}'{}", fmt::format("{}", fmt::join(Kinds(), ", ")), kind, DidYouMean(kind, Kinds()));
  }
  if (least < 1 || most < least) return InvalidArgument("capacity schedule '{}': expected 1 <= least <= most, got {} and {}", kind, least, most);
  CapacitySchedule schedule;
  const auto index = at - Kinds().begin();
  schedule.shape_ = index == 0 ? Shape::kNone : index <= 2 ? Shape::kLinear : index <= 4 ? Shape::kCosine : Shape::kGaussian;
  schedule.reverse_ = index > 0 && index % 2 == 0;
  schedule.least_ = least;
  schedule.most_ = most;
  return schedule;
}

int64_t CapacitySchedule::At(double masked) const {
  const double mu = std::isfinite(masked) ? std::clamp(masked, 0.0, 1.0) : 0.0;
  double a = 0;
  switch (shape_) {
    case Shape::kNone:
      return least_;
    case Shape::kLinear:
      a = mu;
      break;
    case Shape::kCosine:
      a = (1 - std::cos(std::numbers::pi * mu)) / 2;
      break;
    case Shape::kGaussian: {
      const auto bell = [](double x) { return std::exp(-(x - 0.5) * (x - 0.5) / (2 * 0.22 * 0.22)); };
      a = (bell(mu) - bell(0)) / (1 - bell(0));
      break;
    }
  }
  if (reverse_) a = 1 - a;
  return std::llround(static_cast<double>(least_) + static_cast<double>(most_ - least_) * a);
}

}  // namespace tributary::client
