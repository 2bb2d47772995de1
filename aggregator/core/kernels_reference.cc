#include "aggregator/core/kernels_reference.h"

#include <cmath>
#include <cstring>

#include "common/check.h"

namespace tributary::reference {
namespace {

template <typename T>
double NumberAt(const std::byte* numbers, size_t index) {
  T value;
  std::memcpy(&value, numbers + index * sizeof(T), sizeof(T));
  return static_cast<double>(value);
}

template <typename T>
bool FoldFloats(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  bool finite = true;
  for (size_t i = 0; i < n; ++i) {
    double sum = first ? 0.0 : acc[i];
    for (size_t j = 0; j < k; ++j) {
      const double product = weights[j] * NumberAt<T>(xs[j], i);
      sum += product;
      finite = finite && std::isfinite(product) && std::isfinite(sum);
    }
    finite = finite && std::isfinite(sum);
    acc[i] = sum;
  }
  return finite;
}

template <typename T>
bool FoldFixed(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  constexpr int64_t kBound = int64_t{1} << 62;
  for (size_t i = 0; i < n; ++i) {
    int64_t sum = first ? 0 : acc[i];
    for (size_t j = 0; j < k; ++j) {
      const double scaled = weights[j] * NumberAt<T>(xs[j], i) * std::ldexp(1.0, aggregator::kFixedPointBits);
      if (!(std::abs(scaled) < static_cast<double>(kBound))) return false;
      if (__builtin_add_overflow(sum, static_cast<int64_t>(std::llrint(scaled)), &sum)) return false;
      if (sum < -kBound || sum >= kBound) return false;
    }
    acc[i] = sum;
  }
  return true;
}

template <typename T>
ScanResult ScanNumbers(std::span<const std::byte> floats) {
  ScanResult result;
  for (size_t i = 0; i < floats.size() / sizeof(T); ++i) {
    const double x = NumberAt<T>(floats.data(), i);
    if (!std::isfinite(x)) return {.finite = false, .sum_squares = 0, .max_abs = 0};
    result.sum_squares += x * x;
    result.max_abs = std::fmax(result.max_abs, std::abs(x));
  }
  return result;
}

}  // namespace

bool FoldF32(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFloats<float>(acc, xs, weights, k, n, first);
}
bool FoldF64(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFloats<double>(acc, xs, weights, k, n, first);
}
bool FoldFixedF32(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFixed<float>(acc, xs, weights, k, n, first);
}
bool FoldFixedF64(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first) {
  return FoldFixed<double>(acc, xs, weights, k, n, first);
}

ScanResult Scan(std::span<const std::byte> floats, DType dtype) {
  TRIB_CHECK(dtype == DType::kF32 || dtype == DType::kF64, "Scan reads floats, not {}", DTypeName(dtype));
  return dtype == DType::kF32 ? ScanNumbers<float>(floats) : ScanNumbers<double>(floats);
}

}  // namespace tributary::reference
