// Standard normal numbers from uniform 32-bit words, by Box and Muller (1958): r·cos θ and r·sin θ with r = √(−2 ln u), θ = 2πv.
//
// ln, sin and cos are our own polynomials in explicit fused multiply-adds: library functions differ in the last bit between
// processors, these do not. Everything else is +, −, ×, ÷ and √, which IEEE 754 rounds in one way only; no product is followed by a
// sum that a compiler could fuse. So CPU and CUDA give equal bits. u = (word + ½)·2⁻³², hence |normal| <= 6.77.
// Error against exact arithmetic: under 4e−16 relative for ln, 2e−16 absolute for sin and cos. Threads: pure.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/philox.h"

namespace tributary {

namespace normal_detail {

TRIB_HOST_DEVICE double Fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return ::fma(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// ln(n + ½) for an integer n < 2^32: mantissa in [√½, √2), then 2·artanh((m−1)/(m+1)) as a power series.
TRIB_HOST_DEVICE double LogOfHalfInteger(uint32_t n) {
  double mantissa = static_cast<double>(n) + 0.5;
  // 2^k with mantissa·2^−k in [½, 1): the bit length of n, of a number that is at least ½.
  int exponent = 0;
  for (uint32_t rest = n; rest != 0; rest >>= 1) ++exponent;
  mantissa = mantissa / static_cast<double>(uint64_t{1} << exponent);
  if (mantissa < 0.70710678118654752440) {
    mantissa = mantissa + mantissa;
    --exponent;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double t = s * s;  // <= 0.0295
  double p = 1.0 / 23;
  p = Fma(p, t, 1.0 / 21);
  p = Fma(p, t, 1.0 / 19);
  p = Fma(p, t, 1.0 / 17);
  p = Fma(p, t, 1.0 / 15);
  p = Fma(p, t, 1.0 / 13);
  p = Fma(p, t, 1.0 / 11);
  p = Fma(p, t, 1.0 / 9);
  p = Fma(p, t, 1.0 / 7);
  p = Fma(p, t, 1.0 / 5);
  p = Fma(p, t, 1.0 / 3);
  p = Fma(p, t, 1.0);
  return Fma(static_cast<double>(exponent), 0.69314718055994530942, (s + s) * p);
}

// sin and cos of 2π·n·2^−32. The quarter turn nearest to n is taken off in integers: what is left is at most π/4.
TRIB_HOST_DEVICE void SinCosOfTurn(uint32_t n, double* sine, double* cosine) {
  const uint32_t quarter = (n + 0x20000000u) >> 30;
  const auto rest = static_cast<int32_t>(n - (quarter << 30));
  const double x = static_cast<double>(rest) * (6.28318530717958647693 / 4294967296.0);
  const double t = x * x;
  double s = 1.0 / 355687428096000.0;  // 1/17!
  s = Fma(s, t, -1.0 / 1307674368000.0);
  s = Fma(s, t, 1.0 / 6227020800.0);
  s = Fma(s, t, -1.0 / 39916800.0);
  s = Fma(s, t, 1.0 / 362880.0);
  s = Fma(s, t, -1.0 / 5040.0);
  s = Fma(s, t, 1.0 / 120.0);
  s = Fma(s, t, -1.0 / 6.0);
  s = Fma(s, t, 1.0);
  s = s * x;
  double c = -1.0 / 6402373705728000.0;  // 1/18!
  c = Fma(c, t, 1.0 / 20922789888000.0);
  c = Fma(c, t, -1.0 / 87178291200.0);
  c = Fma(c, t, 1.0 / 479001600.0);
  c = Fma(c, t, -1.0 / 3628800.0);
  c = Fma(c, t, 1.0 / 40320.0);
  c = Fma(c, t, -1.0 / 720.0);
  c = Fma(c, t, 1.0 / 24.0);
  c = Fma(c, t, -0.5);
  c = Fma(c, t, 1.0);
  const double swapped_s = (quarter & 1) != 0 ? c : s, swapped_c = (quarter & 1) != 0 ? s : c;
  *sine = (quarter & 2) != 0 ? -swapped_s : swapped_s;
  *cosine = quarter == 1 || quarter == 2 ? -swapped_c : swapped_c;
}

}  // namespace normal_detail

// Four independent standard normals of four independent words.
TRIB_HOST_DEVICE void NormalsOf(const PhiloxWords& words, double* normals) {
  for (int pair = 0; pair < 2; ++pair) {
    const double log_u = normal_detail::LogOfHalfInteger(words.word[2 * pair]) - 22.18070977791824990135;  // 32 ln 2
    const double radius = std::sqrt(-2.0 * log_u);
    double sine, cosine;
    normal_detail::SinCosOfTurn(words.word[2 * pair + 1], &sine, &cosine);
    normals[2 * pair] = radius * cosine;
    normals[2 * pair + 1] = radius * sine;
  }
}

}  // namespace tributary
