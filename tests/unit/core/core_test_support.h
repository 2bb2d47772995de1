// Small language of the core tests: layouts, updates as bytes, and the largest error of two number lists in words.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/reducer.h"
#include "common/ids.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

template <typename T>
std::vector<std::byte> AsBytes(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

template <typename T>
std::vector<T> FromBytes(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

inline TensorLayout LayoutOf(std::vector<TensorSpec> specs) {
  absl::StatusOr<TensorLayout> layout = TensorLayout::Create(std::move(specs));
  EXPECT_TRUE(layout.ok()) << layout.status().ToString();
  return layout.ok() ? *layout : TensorLayout();
}

inline TensorLayout VectorLayout(int64_t elements, DType dtype = DType::kF32) {
  return LayoutOf({{.name = "x", .shape = {elements}, .dtype = dtype, .kind = TensorKind::kTrainable}});
}

inline UpdateId Id(uint64_t n) { return {.hi = 0xabcd, .lo = n}; }

inline std::vector<double> RandomValues(size_t n, uint64_t seed, double scale = 1.0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<double> values(n);
  for (double& value : values) value = normal(random);
  return values;
}

inline std::vector<float> ToFloats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

struct Difference {
  double max_abs = 0;    // ‖a − b‖∞
  double max_norm = 0;   // ‖a − b‖∞ / ‖b‖∞ (element-wise relative error is no measure: cancellation makes it large on correct code)
  size_t index = 0;
};

inline Difference Compare(const std::vector<double>& got, const std::vector<double>& expected) {
  Difference difference;
  EXPECT_EQ(got.size(), expected.size());
  double norm = 0;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    const double error = std::abs(got[i] - expected[i]);
    norm = std::max(norm, std::abs(expected[i]));
    if (!(error <= difference.max_abs)) {
      difference.max_abs = error;
      difference.index = i;
    }
  }
  difference.max_norm = norm > 0 ? difference.max_abs / norm : difference.max_abs;
  return difference;
}

inline std::string Words(const Difference& d) {
  return fmt::format("largest absolute error {}, relative to the largest value {}, at index {}", d.max_abs, d.max_norm, d.index);
}

}  // namespace tributary::aggregator
