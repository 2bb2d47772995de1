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

// The Reader (kernels_per_target.inc) of plain numbers.
template <typename T>
struct Numbers {
  const std::byte* const* xs;
  const uint8_t* At(size_t j, size_t i) const { return reinterpret_cast<const uint8_t*>(xs[j]) + i * sizeof(T); }
  HWY_INLINE F64 Lanes(F64Tag d, size_t j, size_t i) const { return LoadNumbers<T>(d, At(j, i)); }
  HWY_INLINE double One(size_t j, size_t i) const { return LoadNumber<T>(At(j, i)); }
};

bool FoldF32Target(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldLoop(acc, Numbers<float>{xs}, weights, k, n, first);
}
bool FoldF64Target(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldLoop(acc, Numbers<double>{xs}, weights, k, n, first);
}
bool FoldFixedF32Target(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFixedLoop(acc, Numbers<float>{xs}, weights, k, n, first);
}
bool FoldFixedF64Target(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFixedLoop(acc, Numbers<double>{xs}, weights, k, n, first);
}
ScanResult ScanF32Target(const std::byte* from, size_t n) { return ScanLoop(Numbers<float>{&from}, n); }
ScanResult ScanF64Target(const std::byte* from, size_t n) { return ScanLoop(Numbers<double>{&from}, n); }

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
  if (dtype == DType::kF32) return HWY_DYNAMIC_DISPATCH(ScanF32Target)(floats.data(), floats.size() / sizeof(float));
  return HWY_DYNAMIC_DISPATCH(ScanF64Target)(floats.data(), floats.size() / sizeof(double));
}

}  // namespace tributary::aggregator
#endif  // HWY_ONCE
