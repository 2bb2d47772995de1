// e^x in double from sums and products alone, so that a processor and a GPU give equal bits (library functions differ in the last).
//
// Cody and Waite's reduction x = k·ln 2 + r, |r| <= ln 2 / 2, then Taylor's polynomial of degree 11 in Horner's form; each operation is
// rounded by itself: callers compile with contraction off. Relative error under 1e−14. Under −708 it is 0, over 709 infinity; NaN stays.
// Threads: pure.
#pragma once

#include <cstdint>

#include "common/philox.h"

#if !defined(__CUDA_ARCH__)
#include <bit>
#include <cmath>
#endif

namespace tributary {

TRIB_HOST_DEVICE double ExactExp(double x) {
  if (x < -708.0) return 0.0;
  if (x > 709.0) return x * 1e308 * 1e308;
  if (!(x == x)) return x;
  const double k = floor(x * 1.44269504088896340736 + 0.5);
  const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  double p = 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const auto bits = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;
#if defined(__CUDA_ARCH__)
  return p * __longlong_as_double(static_cast<long long>(bits));
#else
  return p * std::bit_cast<double>(bits);
#endif
}

}  // namespace tributary
