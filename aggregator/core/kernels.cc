#include "aggregator/core/kernels.h"

#include <cmath>
#include <cstring>

#include "common/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "aggregator/core/kernels.cc"
#include <hwy/foreach_target.h>  // compiles the rest of this file once per instruction set
#include <hwy/highway.h>

#include "aggregator/core/kernels_per_target.inc"

HWY_BEFORE_NAMESPACE();
namespace tributary::aggregator {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
HWY_INLINE double LoadNumber(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return static_cast<double>(value);
}

// Lanes(d) numbers of type T from any address, as doubles. Loads bytes, so no float is ever read through a misaligned pointer.
#if HWY_TARGET == HWY_SCALAR
template <typename T>
HWY_INLINE F64 LoadNumbers(F64Tag d, const uint8_t* from) {
  return hn::Set(d, LoadNumber<T>(from));
}
#else
template <typename T>
HWY_INLINE F64 LoadNumbers(F64Tag d, const uint8_t* from);
template <>
HWY_INLINE F64 LoadNumbers<float>(F64Tag d, const uint8_t* from) {
  const hn::Rebind<float, F64Tag> d32;
  const hn::Repartition<uint8_t, decltype(d32)> d8;
  return hn::PromoteTo(d, hn::BitCast(d32, hn::LoadU(d8, from)));
}
template <>
HWY_INLINE F64 LoadNumbers<double>(F64Tag d, const uint8_t* from) {
  const hn::Repartition<uint8_t, F64Tag> d8;
  return hn::BitCast(d, hn::LoadU(d8, from));
}
#endif

HWY_INLINE const uint8_t* Bytes(const std::byte* bytes) { return reinterpret_cast<const uint8_t*>(bytes); }

// A non-finite product makes a non-finite sum, whatever is added to it (Inf - Inf is NaN), so looking at sums is enough.
// sum - sum is 0 for finite sums and NaN for all others; NaN sticks in `poison`.
template <typename T>
HWY_INLINE bool FoldFloats(double* HWY_RESTRICT acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  const F64Tag d;
  const size_t lanes = hn::Lanes(d);
  F64 poison = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    F64 a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
    if (!first) {
      a0 = hn::LoadU(d, acc + i);
      a1 = hn::LoadU(d, acc + i + lanes);
      a2 = hn::LoadU(d, acc + i + 2 * lanes);
      a3 = hn::LoadU(d, acc + i + 3 * lanes);
    }
    for (size_t j = 0; j < k; ++j) {
      const F64 w = hn::Set(d, weights[j]);
      const uint8_t* x = Bytes(xs[j]) + i * sizeof(T);
      a0 = hn::Add(a0, hn::Mul(w, LoadNumbers<T>(d, x)));
      a1 = hn::Add(a1, hn::Mul(w, LoadNumbers<T>(d, x + lanes * sizeof(T))));
      a2 = hn::Add(a2, hn::Mul(w, LoadNumbers<T>(d, x + 2 * lanes * sizeof(T))));
      a3 = hn::Add(a3, hn::Mul(w, LoadNumbers<T>(d, x + 3 * lanes * sizeof(T))));
    }
    hn::StoreU(a0, d, acc + i);
    hn::StoreU(a1, d, acc + i + lanes);
    hn::StoreU(a2, d, acc + i + 2 * lanes);
    hn::StoreU(a3, d, acc + i + 3 * lanes);
    poison = hn::Add(poison, hn::Add(hn::Add(hn::Sub(a0, a0), hn::Sub(a1, a1)), hn::Add(hn::Sub(a2, a2), hn::Sub(a3, a3))));
  }
  bool finite = hn::AllFalse(d, hn::IsNaN(poison));
  for (; i < n; ++i) {
    double a = first ? 0.0 : acc[i];
    for (size_t j = 0; j < k; ++j) a += weights[j] * LoadNumber<T>(Bytes(xs[j]) + i * sizeof(T));
    acc[i] = a;
    finite = finite && std::isfinite(a);
  }
  return finite;
}

template <typename T>
HWY_INLINE bool FoldFixed(int64_t* HWY_RESTRICT acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  const F64Tag d;
  const I64Tag di;
  const size_t lanes = hn::Lanes(d);
  const F64 scale = hn::Set(d, kFixedPointScale);
  const F64 limit = hn::Set(d, static_cast<double>(kFixedPointBound));
  const I64 bound = hn::Set(di, kFixedPointBound);
  auto in_range = hn::Eq(hn::Zero(d), hn::Zero(d));
  I64 left_range = hn::Zero(di);  // sign bit: some sum + 2^62 wrapped, that is, the sum left [-2^62, 2^62)
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    I64 a = first ? hn::Zero(di) : hn::LoadU(di, acc + i);
    for (size_t j = 0; j < k; ++j) {
      const F64 x = LoadNumbers<T>(d, Bytes(xs[j]) + i * sizeof(T));
      const F64 scaled = hn::Mul(hn::Mul(hn::Set(d, weights[j]), x), scale);
      in_range = hn::And(in_range, hn::Lt(hn::Abs(scaled), limit));  // false for NaN
      a = hn::Add(a, RoundToInteger(scaled));
      left_range = hn::Or(left_range, hn::Add(a, bound));
    }
    hn::StoreU(a, di, acc + i);
  }
  bool ok = hn::AllTrue(d, in_range) && hn::AllFalse(di, hn::Lt(left_range, hn::Zero(di)));
  for (; i < n; ++i) {
    int64_t a = first ? 0 : acc[i];
    for (size_t j = 0; j < k && ok; ++j) {
      ok = AddFixed(weights[j] * LoadNumber<T>(Bytes(xs[j]) + i * sizeof(T)) * kFixedPointScale, &a);
    }
    acc[i] = a;
  }
  return ok;
}

template <typename T>
HWY_INLINE ScanResult ScanNumbers(const uint8_t* from, size_t n) {
  const F64Tag d;
  const size_t lanes = hn::Lanes(d);
  F64 sum0 = hn::Zero(d), sum1 = sum0, max0 = sum0, max1 = sum0, poison = sum0;
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const F64 x0 = LoadNumbers<T>(d, from + i * sizeof(T));
    const F64 x1 = LoadNumbers<T>(d, from + (i + lanes) * sizeof(T));
    sum0 = hn::Add(sum0, hn::Mul(x0, x0));
    sum1 = hn::Add(sum1, hn::Mul(x1, x1));
    max0 = hn::Max(max0, hn::Abs(x0));
    max1 = hn::Max(max1, hn::Abs(x1));
    poison = hn::Add(poison, hn::Add(hn::Sub(x0, x0), hn::Sub(x1, x1)));
  }
  ScanResult result;
  result.finite = hn::AllFalse(d, hn::IsNaN(poison));
  result.sum_squares = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  result.max_abs = hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
  for (; i < n; ++i) {
    const double x = LoadNumber<T>(from + i * sizeof(T));
    result.finite = result.finite && std::isfinite(x);
    result.sum_squares += x * x;
    result.max_abs = std::fmax(result.max_abs, std::abs(x));
  }
  if (!result.finite) return {.finite = false, .sum_squares = 0, .max_abs = 0};
  return result;
}

bool FoldF32Target(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFloats<float>(acc, xs, weights, k, n, first);
}
bool FoldF64Target(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFloats<double>(acc, xs, weights, k, n, first);
}
bool FoldFixedF32Target(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFixed<float>(acc, xs, weights, k, n, first);
}
bool FoldFixedF64Target(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFixed<double>(acc, xs, weights, k, n, first);
}
ScanResult ScanF32Target(const uint8_t* from, size_t n) { return ScanNumbers<float>(from, n); }
ScanResult ScanF64Target(const uint8_t* from, size_t n) { return ScanNumbers<double>(from, n); }

}  // namespace HWY_NAMESPACE
}  // namespace tributary::aggregator
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tributary::aggregator {

HWY_EXPORT(FoldF32Target);
HWY_EXPORT(FoldF64Target);
HWY_EXPORT(FoldFixedF32Target);
HWY_EXPORT(FoldFixedF64Target);
HWY_EXPORT(ScanF32Target);
HWY_EXPORT(ScanF64Target);

bool FoldF32(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return HWY_DYNAMIC_DISPATCH(FoldF32Target)(acc, xs, weights, k, n, first);
}
bool FoldF64(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return HWY_DYNAMIC_DISPATCH(FoldF64Target)(acc, xs, weights, k, n, first);
}
bool FoldFixedF32(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return HWY_DYNAMIC_DISPATCH(FoldFixedF32Target)(acc, xs, weights, k, n, first);
}
bool FoldFixedF64(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return HWY_DYNAMIC_DISPATCH(FoldFixedF64Target)(acc, xs, weights, k, n, first);
}

double FixedPointLimit(int64_t updates) {
  TRIB_CHECK(updates >= 1, "FixedPointLimit({}): at least one update", updates);
  const int64_t units = ((int64_t{1} << 62) - 1) / updates;  // of 2^-kFixedPointBits each; `updates` of them stay below 2^62
  double rounded = static_cast<double>(units);
  if (rounded >= 0x1p62 || static_cast<int64_t>(rounded) > units) rounded = std::nextafter(rounded, 0.0);
  return std::ldexp(rounded, -kFixedPointBits);
}

ScanResult Scan(std::span<const std::byte> floats, DType dtype) {
  TRIB_CHECK(dtype == DType::kF32 || dtype == DType::kF64, "Scan reads floats, not {}", DTypeName(dtype));
  const auto* from = reinterpret_cast<const uint8_t*>(floats.data());
  if (dtype == DType::kF32) return HWY_DYNAMIC_DISPATCH(ScanF32Target)(from, floats.size() / sizeof(float));
  return HWY_DYNAMIC_DISPATCH(ScanF64Target)(from, floats.size() / sizeof(double));
}

}  // namespace tributary::aggregator
#endif  // HWY_ONCE
