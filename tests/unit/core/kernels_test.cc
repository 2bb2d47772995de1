#include "aggregator/core/kernels.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <limits>
#include <random>
#include <type_traits>

#include "aggregator/core/kernels_reference.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

// Runs with each instruction set this machine has, one after the other.
class KernelsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

INSTANTIATE_TEST_SUITE_P(Targets, KernelsTest, ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

// Updates packed behind each other from an odd address on.
template <typename T>
struct Packed {
  Packed(const std::vector<std::vector<T>>& updates, size_t misalignment) : bytes(misalignment) {
    std::vector<size_t> offsets;
    for (const std::vector<T>& update : updates) {
      offsets.push_back(bytes.size());
      const std::vector<std::byte> more = AsBytes(update);
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
    for (const size_t offset : offsets) pointers.push_back(bytes.data() + offset);
  }
  std::vector<std::byte> bytes;
  std::vector<const std::byte*> pointers;
};

template <typename T>
std::vector<std::vector<T>> RandomUpdates(size_t k, size_t n, uint64_t seed) {
  std::vector<std::vector<T>> updates;
  for (size_t j = 0; j < k; ++j) {
    const std::vector<double> values = RandomValues(n, seed * 31 + j);
    updates.emplace_back(values.begin(), values.end());
  }
  return updates;
}

std::vector<double> RandomWeights(size_t k, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0.1, 1000.0);
  std::vector<double> weights(k);
  for (double& weight : weights) weight = uniform(random);
  return weights;
}

template <typename T, typename Acc>
bool Fast(Acc* acc, const Packed<T>& xs, const std::vector<double>& weights, size_t n, bool first) {
  if constexpr (std::is_same_v<Acc, double>) {
    return (std::is_same_v<T, float> ? FoldF32 : FoldF64)(acc, xs.pointers.data(), weights.data(), weights.size(), n, first);
  } else {
    return (std::is_same_v<T, float> ? FoldFixedF32 : FoldFixedF64)(acc, xs.pointers.data(), weights.data(), weights.size(), n, first);
  }
}

template <typename T, typename Acc>
bool Plain(Acc* acc, const Packed<T>& xs, const std::vector<double>& weights, size_t n, bool first) {
  if constexpr (std::is_same_v<Acc, double>) {
    return (std::is_same_v<T, float> ? reference::FoldF32 : reference::FoldF64)(acc, xs.pointers.data(), weights.data(), weights.size(), n,
                                                                               first);
  } else {
    return (std::is_same_v<T, float> ? reference::FoldFixedF32 : reference::FoldFixedF64)(acc, xs.pointers.data(), weights.data(),
                                                                                         weights.size(), n, first);
  }
}

// The fast kernel has the reference's bits, for every K, tail and alignment.
template <typename T, typename Acc>
void ExpectReferenceBits() {
  for (size_t k = 1; k <= kMaxFoldUpdates; ++k) {
    for (const size_t n : {size_t{0}, size_t{1}, size_t{2}, size_t{7}, size_t{31}, size_t{32}, size_t{33}, size_t{63}, 100 + k, size_t{1031}}) {
      const uint64_t seed = k * 10007 + n;
      const Packed<T> xs(RandomUpdates<T>(k, n, seed), (k + n) % 9);
      const std::vector<double> weights = RandomWeights(k, seed);
      for (const bool first : {true, false}) {
        std::vector<Acc> fast(n, static_cast<Acc>(12345));
        std::vector<Acc> plain = fast;
        ASSERT_TRUE((Plain<T, Acc>(plain.data(), xs, weights, n, first)));
        ASSERT_TRUE((Fast<T, Acc>(fast.data(), xs, weights, n, first)));
        if (fast == plain) continue;
        const std::vector<double> a(fast.begin(), fast.end()), b(plain.begin(), plain.end());
        FAIL() << "K " << k << ", n " << n << ", first " << first << ": " << Words(Compare(a, b));
      }
    }
  }
}

TEST_P(KernelsTest, FoldF32HasTheReferencesBits) { ExpectReferenceBits<float, double>(); }
TEST_P(KernelsTest, FoldF64HasTheReferencesBits) { ExpectReferenceBits<double, double>(); }
TEST_P(KernelsTest, FoldFixedF32HasTheReferencesBits) { ExpectReferenceBits<float, int64_t>(); }
TEST_P(KernelsTest, FoldFixedF64HasTheReferencesBits) { ExpectReferenceBits<double, int64_t>(); }

TEST_P(KernelsTest, SumsAreTheClosedForm) {
  constexpr size_t kN = 777;
  for (size_t k = 1; k <= kMaxFoldUpdates; ++k) {
    std::vector<std::vector<float>> updates(k, std::vector<float>(kN));
    std::vector<double> weights(k);
    for (size_t j = 0; j < k; ++j) {
      weights[j] = static_cast<double>(j + 1);
      for (size_t i = 0; i < kN; ++i) updates[j][i] = static_cast<float>(j) + static_cast<float>(i) / 1024;  // exact
    }
    const Packed<float> xs(updates, 1);
    std::vector<double> acc(kN);
    std::vector<int64_t> fixed(kN);
    ASSERT_TRUE(FoldF32(acc.data(), xs.pointers.data(), weights.data(), k, kN, true));
    ASSERT_TRUE(FoldFixedF32(fixed.data(), xs.pointers.data(), weights.data(), k, kN, true));
    const double kk = static_cast<double>(k);
    for (size_t i = 0; i < kN; ++i) {
      // Σ (j+1)(j + i/1024) = (k³ − k)/3 + i/1024·k(k+1)/2
      const double expected = (kk * kk * kk - kk) / 3 + static_cast<double>(i) / 1024 * kk * (kk + 1) / 2;
      ASSERT_EQ(acc[i], expected) << "K " << k << ", index " << i;
      ASSERT_EQ(static_cast<double>(fixed[i]), std::ldexp(expected, kFixedPointBits)) << "K " << k << ", index " << i;
    }
  }
}

TEST_P(KernelsTest, NoUpdatesWriteZerosOrNothing) {
  std::vector<double> acc(37, 5.0);
  std::vector<int64_t> fixed(37, 5);
  EXPECT_TRUE(FoldF32(acc.data(), nullptr, nullptr, 0, 37, false));
  EXPECT_TRUE(FoldFixedF32(fixed.data(), nullptr, nullptr, 0, 37, false));
  EXPECT_EQ(acc, std::vector<double>(37, 5.0));
  EXPECT_EQ(fixed, std::vector<int64_t>(37, 5));
  EXPECT_TRUE(FoldF32(acc.data(), nullptr, nullptr, 0, 37, true));
  EXPECT_TRUE(FoldFixedF32(fixed.data(), nullptr, nullptr, 0, 37, true));
  EXPECT_EQ(acc, std::vector<double>(37, 0.0));
  EXPECT_EQ(fixed, std::vector<int64_t>(37, 0));
}

template <typename T>
void ExpectNonFiniteFound() {
  constexpr size_t kN = 75;
  const T bad_values[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity()};
  for (size_t position = 0; position < kN; ++position) {
    for (const T bad : bad_values) {
      for (const size_t k : {size_t{1}, size_t{3}}) {
        auto updates = RandomUpdates<T>(k, kN, position);
        updates[position % k][position] = bad;
        const Packed<T> xs(updates, 3);
        const std::vector<double> weights = RandomWeights(k, position);
        std::vector<double> acc(kN, 1.0);
        std::vector<int64_t> fixed(kN, 1);
        EXPECT_FALSE((Fast<T, double>(acc.data(), xs, weights, kN, false))) << bad << " at " << position;
        EXPECT_FALSE((Plain<T, double>(acc.data(), xs, weights, kN, true))) << bad << " at " << position;
        EXPECT_FALSE((Fast<T, int64_t>(fixed.data(), xs, weights, kN, false))) << bad << " at " << position;
        EXPECT_FALSE((Plain<T, int64_t>(fixed.data(), xs, weights, kN, true))) << bad << " at " << position;
        const DType dtype = std::is_same_v<T, float> ? DType::kF32 : DType::kF64;
        EXPECT_FALSE(Scan(AsBytes(updates[position % k]), dtype).finite) << bad << " at " << position;
      }
    }
  }
}

TEST_P(KernelsTest, NonFiniteF32IsFoundAtEveryPosition) { ExpectNonFiniteFound<float>(); }
TEST_P(KernelsTest, NonFiniteF64IsFoundAtEveryPosition) { ExpectNonFiniteFound<double>(); }

TEST_P(KernelsTest, OppositeInfinitiesDoNotCancel) {
  const float inf = std::numeric_limits<float>::infinity();
  const Packed<float> xs({std::vector<float>(40, inf), std::vector<float>(40, -inf)}, 0);
  std::vector<double> acc(40);
  EXPECT_FALSE((Fast<float, double>(acc.data(), xs, {1.0, 1.0}, 40, true)));
}

TEST_P(KernelsTest, AFiniteProductThatOverflowsIsFound) {
  const Packed<double> xs({std::vector<double>(9, 1e300)}, 0);
  std::vector<double> acc(9);
  EXPECT_FALSE((Fast<double, double>(acc.data(), xs, {1e10}, 9, true)));
  EXPECT_FALSE((Plain<double, double>(acc.data(), xs, {1e10}, 9, true)));
}

TEST_P(KernelsTest, FixedPointRoundsLikeLlrintOnHostileValues) {
  std::vector<double> values = {0.0, -0.0, std::numeric_limits<double>::denorm_min(), -std::numeric_limits<double>::denorm_min(),
                                std::numeric_limits<double>::min(), 1e-300, 0x1p-41, -0x1p-41, 0x1.8p-40, 0x1.4p-39, -0x1.4p-39};
  std::mt19937_64 random(20240117);
  for (int exponent = -45; exponent < 22; ++exponent) {
    for (int repeat = 0; repeat < 60; ++repeat) {
      const double mantissa = 1.0 + static_cast<double>(random() >> 12) * 0x1p-52;
      values.push_back(std::ldexp(random() % 2 == 0 ? mantissa : -mantissa, exponent));
    }
    // Exact ties of 2^-40, the neighbours of powers of two, and halves of the 2^32 split.
    const double tie = (static_cast<double>(random() % 100000) + 0.5) * 0x1p-40;
    for (const double value : {tie, -tie, std::nextafter(tie, 1), std::nextafter(tie, 0), std::ldexp(1.0, exponent),
                               std::nextafter(std::ldexp(1.0, exponent), 0), (0x1p31 + 0.5) * 0x1p-40, (0x1p31 - 0.5) * 0x1p-40,
                               -(0x1p31 + 0.5) * 0x1p-40, (0x1p51 + 0.5) * 0x1p-40, (0x1p52 - 0.5) * 0x1p-40, (0x1p32 + 0.5) * 0x1p-40}) {
      values.push_back(value);
    }
  }
  values.push_back(std::nextafter(0x1p22, 0));
  values.push_back(-std::nextafter(0x1p22, 0));
  const Packed<double> xs({values}, 5);
  std::vector<int64_t> acc(values.size());
  ASSERT_TRUE((Fast<double, int64_t>(acc.data(), xs, {1.0}, values.size(), true)));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(acc[i], std::llrint(values[i] * 0x1p40)) << fmt::format("{:a} at {}", values[i], i);
  }
}

TEST_P(KernelsTest, FixedPointRefusesWhatLeavesItsRange) {
  for (size_t position = 0; position < 40; ++position) {
    for (const double bad : {0x1p22, -0x1p22, 1e30, 1e308}) {
      std::vector<double> values(40, 1.0);
      values[position] = bad;
      const Packed<double> xs({values}, 0);
      std::vector<int64_t> acc(40);
      EXPECT_FALSE((Fast<double, int64_t>(acc.data(), xs, {1.0}, 40, true))) << bad << " at " << position;
      EXPECT_FALSE((Plain<double, int64_t>(acc.data(), xs, {1.0}, 40, true))) << bad << " at " << position;
    }
    // Each fits, their sum does not; a third one would bring it back.
    std::vector<double> large(40, 1.0);
    large[position] = 3e6;
    std::vector<double> negative(40, 1.0);
    negative[position] = -3e6;
    const Packed<double> xs({large, large, negative}, 0);
    std::vector<int64_t> acc(40);
    EXPECT_FALSE((Fast<double, int64_t>(acc.data(), xs, {1.0, 1.0, 1.0}, 40, true))) << position;
    EXPECT_FALSE((Plain<double, int64_t>(acc.data(), xs, {1.0, 1.0, 1.0}, 40, true))) << position;
  }
}

TEST_P(KernelsTest, FixedPointLimitIsTheLargestThatNeverOverflows) {
  for (const int64_t updates : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{10}, int64_t{1000}}) {
    const double limit = FixedPointLimit(updates);
    EXPECT_GT(limit, 0x1p22 / static_cast<double>(updates) * (1 - 1e-15));
    for (const double sign : {1.0, -1.0}) {
      const Packed<double> xs({std::vector<double>(9, sign * limit)}, 0);
      std::vector<int64_t> acc(9);
      for (int64_t i = 0; i < updates; ++i) ASSERT_TRUE((Fast<double, int64_t>(acc.data(), xs, {1.0}, 9, i == 0))) << updates;
    }
  }
}

TEST_P(KernelsTest, ScanAgreesWithTheReference) {
  for (const size_t n : {size_t{0}, size_t{1}, size_t{5}, size_t{64}, size_t{1003}}) {
    const std::vector<double> values = RandomValues(n, n + 1, 3.0);
    const std::vector<float> floats = ToFloats(values);
    for (const DType dtype : {DType::kF32, DType::kF64}) {
      const Packed<float> packed_floats({floats}, 1);
      const Packed<double> packed_values({values}, 1);
      const std::span<const std::byte> bytes = dtype == DType::kF32 ? std::span<const std::byte>(packed_floats.bytes).subspan(1)
                                                                    : std::span<const std::byte>(packed_values.bytes).subspan(1);
      const ScanResult fast = Scan(bytes, dtype);
      const ScanResult plain = reference::Scan(bytes, dtype);
      EXPECT_TRUE(fast.finite);
      EXPECT_EQ(fast.max_abs, plain.max_abs) << n;
      // Both are fp64 sums of at most 1003 positive terms in different order: n·2^-53 relative.
      EXPECT_NEAR(fast.sum_squares, plain.sum_squares, 1.2e-13 * plain.sum_squares) << n;
    }
  }
}

TEST_P(KernelsTest, ScanFindsTheLargestAtEveryPosition) {
  for (size_t position = 0; position < 45; ++position) {
    std::vector<float> values(45, 0.5f);
    values[position] = position % 2 == 0 ? -7.0f : 7.0f;
    EXPECT_EQ(Scan(AsBytes(values), DType::kF32).max_abs, 7.0) << position;
  }
}

TEST_P(KernelsTest, ScanOfFiniteValuesMayHaveAnInfiniteNorm) {
  const ScanResult result = Scan(AsBytes(std::vector<double>(20, 1e200)), DType::kF64);
  EXPECT_TRUE(result.finite);
  EXPECT_EQ(result.max_abs, 1e200);
  EXPECT_TRUE(std::isinf(result.sum_squares));
}

}  // namespace
}  // namespace tributary::aggregator
