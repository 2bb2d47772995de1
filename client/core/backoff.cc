#include "client/core/backoff.h"

#include <algorithm>

namespace tributary::client {

absl::Duration Backoff::Next(uint64_t random, std::optional<absl::Duration> push_back) {
  // 53 bits: every value of [0, 1) a double can hold evenly.
  const double unit = static_cast<double>(random >> 11) * 0x1.0p-53;
  if (push_back.has_value()) {
    failures_ = 0;
    const absl::Duration asked = std::clamp(*push_back, absl::ZeroDuration(), absl::Hours(1));
    return asked * (0.8 + 0.4 * unit);
  }
  ++failures_;
  if (failures_ == 1) return limits_.first * unit;
  const int doublings = std::min(failures_ - 2, 30);
  const absl::Duration ceiling = std::min(limits_.cap, limits_.base * static_cast<double>(int64_t{1} << doublings));
  return ceiling * unit;
}

}  // namespace tributary::client
