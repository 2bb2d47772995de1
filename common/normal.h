// Standard normal numbers from uniform 32-bit words, by Box and Muller (1958): r·cos θ and r·sin θ with r = √(−2 ln u), θ = 2πv.
//
// ln, sin and cos are our own polynomials in explicit fused multiply-adds: library functions differ in the last bit between
// processors, these do not. Everything else is +, −, ×, ÷ and √, which IEEE 754 rounds in one way only; no product is followed by a
// sum that a compiler could fuse. So CPU and CUDA give equal bits. u = (word + ½)·2⁻³², hence |normal| <= 6.77.
// Error against exact arithmetic: under 4e−16 relative for ln, 2e−16 absolute for sin and cos.
//
// Single precision has a form of its own, for updates in it (a GPU has 32 times fewer units for double on some cards, and half as many on
// the best): the same method, polynomials of Cephes' logf, sinf and cosf. Its words are rounded to 24 bits first, which leaves the tail as fine
// as it was. Error: under 2e−7 relative for ln, 1e−7 absolute for sin and cos. Threads: pure.
#pragma once

#include <bit>
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

TRIB_HOST_DEVICE float Fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// An integer as double, exactly. On the GPU a sum takes the place of a conversion, which is four times slower there.
TRIB_HOST_DEVICE double DoubleOf(uint32_t n) {
#if defined(__CUDA_ARCH__)
  return __hiloint2double(0x43300000, static_cast<int>(n)) - 0x1p52;
#else
  return static_cast<double>(n);
#endif
}

// ln(n + ½) for an integer n < 2^32: mantissa in [√½, √2), then 2·artanh((m−1)/(m+1)) as a power series.
TRIB_HOST_DEVICE double LogOfHalfInteger(uint32_t n) {
  // The mantissa in [½, 1) and the power of two beside it are read off the number's bits; below √½ it is doubled by its exponent.
  const double number = DoubleOf(n) + 0.5;
  constexpr uint64_t kMantissa = 0x000FFFFFFFFFFFFFu, kHalf = 0x3FE0000000000000u, kRootOfHalf = 0x3FE6A09E667F3BCDu;
#if defined(__CUDA_ARCH__)
  const auto bits = static_cast<uint64_t>(__double_as_longlong(number));
#else
  const auto bits = std::bit_cast<uint64_t>(number);
#endif
  uint32_t biased = static_cast<uint32_t>(bits >> 52);
  uint64_t scaled = (bits & kMantissa) | kHalf;
  if (scaled < kRootOfHalf) {
    scaled += uint64_t{1} << 52;
    --biased;
  }
#if defined(__CUDA_ARCH__)
  const double mantissa = __longlong_as_double(static_cast<long long>(scaled));
  // 2^52 + biased − (2^52 + 1022)
  const double exponent = __hiloint2double(0x43300000, static_cast<int>(biased)) - 4503599627371518.0;
#else
  const auto mantissa = std::bit_cast<double>(scaled);
  const auto exponent = static_cast<double>(static_cast<int>(biased) - 1022);
#endif
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
  return Fma(exponent, 0.69314718055994530942, (s + s) * p);
}

// sin and cos of 2π·n·2^−32. The quarter turn nearest to n is taken off in integers: what is left is at most π/4.
TRIB_HOST_DEVICE void SinCosOfTurn(uint32_t n, double* sine, double* cosine) {
  const uint32_t quarter = (n + 0x20000000u) >> 30;
  const uint32_t rest = n - (quarter << 30);  // a signed number: −2^29 … 2^29 − 1
#if defined(__CUDA_ARCH__)
  const double turned = __hiloint2double(0x43300000, static_cast<int>(rest ^ 0x80000000u)) - 4503601774854144.0;  // 2^52 + 2^31
#else
  const auto turned = static_cast<double>(static_cast<int32_t>(rest));
#endif
  const double x = turned * (6.28318530717958647693 / 4294967296.0);
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

namespace normal_detail {

// ln((n + ½)·2^−32), n rounded to 24 bits: mantissa in [√½, √2), then Cephes' polynomial of it less 1.
TRIB_HOST_DEVICE float LogOfUnit(uint32_t n) {
  const float number = static_cast<float>(n) + 0.5F;
  constexpr uint32_t kRootOfHalf = 0x3F3504F3u, kTwoTo32 = 0x10000000u;  // the latter in the exponent alone
#if defined(__CUDA_ARCH__)
  const uint32_t above = __float_as_uint(number) - (kRootOfHalf + kTwoTo32);
  const float f = __uint_as_float((above & 0x7FFFFFu) + kRootOfHalf) - 1.0F;
#else
  const uint32_t above = std::bit_cast<uint32_t>(number) - (kRootOfHalf + kTwoTo32);
  const float f = std::bit_cast<float>((above & 0x7FFFFFu) + kRootOfHalf) - 1.0F;
#endif
  const auto exponent = static_cast<float>(static_cast<int32_t>(above & 0xFF800000u));  // times 2^23, exactly
  float p = 7.0376836292E-2F;
  p = Fma(p, f, -1.1514610310E-1F);
  p = Fma(p, f, 1.1676998740E-1F);
  p = Fma(p, f, -1.2420140846E-1F);
  p = Fma(p, f, 1.4249322787E-1F);
  p = Fma(p, f, -1.6668057665E-1F);
  p = Fma(p, f, 2.0000714765E-1F);
  p = Fma(p, f, -2.4999993993E-1F);
  p = Fma(p, f, 3.3333331174E-1F);
  const float z = f * f;
  const float tail = Fma(-0.5F, z, p * f * z);
  return Fma(exponent, 0.693147180559945F * 0x1p-23F, f + tail);
}

TRIB_HOST_DEVICE float WithSignOf(uint32_t bits, float value) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(__float_as_uint(value) ^ (bits & 0x80000000u));
#else
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ (bits & 0x80000000u));
#endif
}

TRIB_HOST_DEVICE void SinCosOfTurn(uint32_t n, float* sine, float* cosine) {
  const uint32_t turned = n + 0x20000000u;  // the nearest quarter is in its upper two bits
  const float x = static_cast<float>(static_cast<int32_t>(n << 2)) * 3.6572951981678992e-10F;  // what is left of it, four times; 2π/2^34
  const float z = x * x;
  float s = -1.9515295891E-4F;
  s = Fma(s, z, 8.3321608736E-3F);
  s = Fma(s, z, -1.6666654611E-1F);
  s = Fma(s * z, x, x);
  float c = 2.443315711809948E-5F;
  c = Fma(c, z, -1.388731625493765E-3F);
  c = Fma(c, z, 4.166664568298827E-2F);
  c = Fma(c * z, z, Fma(-0.5F, z, 1.0F));
  const bool odd = (turned & 0x40000000u) != 0;
  *sine = WithSignOf(turned, odd ? c : s);                 // negative in the quarters 2 and 3
  *cosine = WithSignOf(turned + 0x40000000u, odd ? s : c);  // in 1 and 2
}

// √x, rounded to nearest: of all x = −2·LogOfUnit(n). On a GPU without the branch that a square root of anything has, which kept the compiler
// from working on several at a time; tests/bench/cuda_bench.py compares it with the device's own for every n.
TRIB_HOST_DEVICE float RootOf(float x) {
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 0x1p-126F)));  // 0 is one of them
  const float near = __fmul_rn(x, inverse);
  return __fmaf_rn(__fmaf_rn(-near, near, x), __fmul_rn(0.5F, inverse), near);
#else
  return std::sqrt(x);
#endif
}

}  // namespace normal_detail

// In single precision: not the doubles above rounded, numbers of their own.
TRIB_HOST_DEVICE void NormalsOf(const PhiloxWords& words, float* normals) {
  for (int pair = 0; pair < 2; ++pair) {
    const float radius = normal_detail::RootOf(-2.0F * normal_detail::LogOfUnit(words.word[2 * pair]));
    float sine, cosine;
    normal_detail::SinCosOfTurn(words.word[2 * pair + 1], &sine, &cosine);
    normals[2 * pair] = radius * cosine;
    normals[2 * pair + 1] = radius * sine;
  }
}

}  // namespace tributary
