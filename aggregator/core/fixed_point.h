// The 64-bit fixed point of reproducible sums: units of 2^-kFixedPointBits, sums within [-2^62, 2^62). Threads: pure.
#pragma once

#include <cmath>
#include <cstdint>

#include "aggregator/core/kernels.h"

namespace tributary::aggregator {

inline constexpr int64_t kFixedPointBound = int64_t{1} << 62;
inline constexpr double kFixedPointScale = static_cast<double>(int64_t{1} << kFixedPointBits);

// *sum += llrint(scaled), scaled in units. False, and *sum as it was or out of range, if either leaves the range.
inline bool AddFixed(double scaled, int64_t* sum) {
  if (!(std::abs(scaled) < static_cast<double>(kFixedPointBound))) return false;  // false for NaN
  *sum = static_cast<int64_t>(static_cast<uint64_t>(*sum) + static_cast<uint64_t>(std::llrint(scaled)));
  return *sum >= -kFixedPointBound && *sum < kFixedPointBound;
}

}  // namespace tributary::aggregator
