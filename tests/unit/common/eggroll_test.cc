#include "common/eggroll.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/eggroll_spec.h"
#include "common/random_words.h"
#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr EggrollLayer kLayer{.seed = 77, .layer = 3, .rank = 2, .rows = 133, .columns = 70};

std::vector<float> Draw(size_t count, uint64_t seed) {
  std::vector<float> values(count, 0.0F);
  AddNormals(*MakePhiloxSource({.seed = seed}), 0, 1, values);
  return values;
}

// A member's noise A·Bᵀ, read off an update in which it alone has weight: 2^20 · step 2^−20.
std::vector<float> Noise(const EggrollLayer& layer, uint32_t member) {
  std::vector<float> noise(layer.rows * layer.columns, 0.0F);
  EggrollUpdate(layer, std::vector<EggrollMember>{{member, int64_t{1} << 20}}, 0x1p-20F, noise);
  return noise;
}

TEST(EggrollTest, OneMemberOfRankOneGivesASignedMatrixOfRankOne) {
  EggrollLayer layer = kLayer;
  layer.rank = 1;
  const std::vector<float> noise = Noise(layer, 5);
  size_t negative = 0;
  for (uint64_t i = 0; i < layer.rows; ++i) {
    for (uint64_t j = 0; j < layer.columns; ++j) {
      const float x = noise[i * layer.columns + j];
      ASSERT_EQ(std::abs(x), 1);
      negative += x < 0 ? 1 : 0;
      EXPECT_EQ(x * noise[0], noise[i * layer.columns] * noise[j]) << "rank one";
    }
  }
  EXPECT_NEAR(static_cast<double>(negative) / static_cast<double>(noise.size()), 0.5, 0.2);
  EXPECT_NE(noise, Noise(layer, 6));
  layer.layer = 4;
  EXPECT_NE(noise, Noise(layer, 5));
}

TEST(EggrollTest, TheUpdateDoesNotDependOnTheOrderOfMembers) {
  std::vector<EggrollMember> members;
  for (uint32_t i = 0; i < 50; ++i) members.push_back({i, EggrollWeight(std::sin(i), i % 2 == 0 ? 1 : -1)});
  std::vector<float> one = Draw(kLayer.rows * kLayer.columns, 1), two = one;
  EggrollUpdate(kLayer, members, EggrollStep(0.05, 0.2, 50, 2), one);
  std::reverse(members.begin(), members.end());
  EggrollUpdate(kLayer, members, EggrollStep(0.05, 0.2, 50, 2), two);
  EXPECT_EQ(one, two);
}

TEST(EggrollTest, ForwardIsTheProductWithThePerturbedMatrix) {
  const std::vector<float> noise = Noise(kLayer, 9), x = Draw(kLayer.columns, 2);
  std::vector<float> y(kLayer.rows, 0.0F);
  const float scale = static_cast<float>(-0.2 / std::sqrt(2.0));
  EggrollForward(kLayer, 9, scale, x, y);
  for (uint64_t i = 0; i < kLayer.rows; ++i) {
    double expected = 0;
    for (uint64_t j = 0; j < kLayer.columns; ++j) expected += static_cast<double>(scale) * noise[i * kLayer.columns + j] * x[j];
    EXPECT_NEAR(y[i], expected, 1e-5) << i;
  }
}

TEST(EggrollTest, FitnessIsRoundedAndBounded) {
  EXPECT_EQ(EggrollWeight(1.0, 1), int64_t{1} << 20);
  EXPECT_EQ(EggrollWeight(1.0, -1), -(int64_t{1} << 20));
  EXPECT_EQ(EggrollWeight(1e9, 1), int64_t{16} << 20);
  EXPECT_EQ(EggrollWeight(0, 1), 0);
}

// From a linear model's squared error, with fitness standardised as in the paper: the estimate points along the true gradient.
TEST(EggrollTest, TheEstimatePointsAlongTheGradient) {
  const EggrollLayer layer{.seed = 5, .layer = 0, .rank = 1, .rows = 16, .columns = 24};
  const std::vector<float> target = Draw(16 * 24, 3), inputs = Draw(64 * 24, 4);
  const auto errors = [&](uint32_t member, float scale) {  // of outputs, [64, 16], at W = 0
    std::vector<float> all;
    for (size_t n = 0; n < 64; ++n) {
      const std::span<const float> x(inputs.data() + n * 24, 24);
      std::vector<float> y(16, 0.0F);
      if (scale != 0) EggrollForward(layer, member, scale, x, y);
      for (size_t i = 0; i < 16; ++i) {
        for (size_t j = 0; j < 24; ++j) y[i] -= target[i * 24 + j] * x[j];
      }
      all.insert(all.end(), y.begin(), y.end());
    }
    return all;
  };
  constexpr uint32_t kPairs = 512;
  std::vector<double> fitness;
  for (uint32_t i = 0; i < kPairs; ++i) {
    for (const float sign : {1.0F, -1.0F}) {
      double loss = 0;
      for (const float e : errors(i, 0.05F * sign)) loss += static_cast<double>(e) * e;
      fitness.push_back(-loss);
    }
  }
  double mean = 0, variance = 0;
  for (const double f : fitness) mean += f / static_cast<double>(fitness.size());
  for (const double f : fitness) variance += (f - mean) * (f - mean) / static_cast<double>(fitness.size());
  std::vector<EggrollMember> members;
  for (uint32_t i = 0; i < 2 * kPairs; ++i) members.push_back({i / 2, EggrollWeight((fitness[i] - mean) / std::sqrt(variance + 1e-5), i % 2 == 0 ? 1 : -1)});
  std::vector<float> update(16 * 24, 0.0F);
  EggrollUpdate(layer, members, EggrollStep(1, 0.05, 2 * kPairs, 1), update);
  std::vector<double> descent(16 * 24, 0.0);
  const std::vector<float> error = errors(0, 0);
  for (size_t n = 0; n < 64; ++n) {
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 24; ++j) descent[i * 24 + j] -= static_cast<double>(error[n * 16 + i]) * inputs[n * 24 + j];
    }
  }
  double dot = 0, ours = 0, theirs = 0;
  for (size_t i = 0; i < update.size(); ++i) {
    dot += update[i] * descent[i];
    ours += static_cast<double>(update[i]) * update[i];
    theirs += descent[i] * descent[i];
  }
  EXPECT_GT(dot / std::sqrt(ours * theirs), 0.55);  // 512 directions of 384 dimensions; the note measured .64
}

TEST(EggrollSpecTest, MatricesAreTheTrainableTensorsByTheirFirstExtent) {
  const auto tensor = [](const char* name, std::vector<int64_t> shape, TensorKind kind) { return TensorSpec{.name = name, .shape = std::move(shape), .dtype = DType::kF32, .kind = kind}; };
  const TensorLayout layout = *TensorLayout::Create({tensor("running", {9}, TensorKind::kBuffer), tensor("conv", {4, 3, 5}, TensorKind::kTrainable),
                                                     tensor("none", {0, 3}, TensorKind::kTrainable), tensor("bias", {4}, TensorKind::kTrainable),
                                                     tensor("scale", {}, TensorKind::kTrainable)});
  const std::vector<EggrollTensor> tensors = EggrollTensors(layout, 2);
  ASSERT_EQ(tensors.size(), 3U);
  const auto is = [](const EggrollTensor& got, uint32_t number, uint64_t rows, uint64_t columns, size_t first) {
    return got.layer.layer == number && got.layer.rank == 2 && got.layer.rows == rows && got.layer.columns == columns && got.first == first;
  };
  EXPECT_TRUE(is(tensors[0], 0, 4, 15, 0));
  EXPECT_TRUE(is(tensors[1], 2, 4, 1, 60));
  EXPECT_TRUE(is(tensors[2], 3, 1, 1, 64));
  std::vector<float> noise(65);
  EggrollNoise(tensors, 12, 7, noise);
  EggrollLayer first = tensors[0].layer;
  first.seed = 12;
  EXPECT_EQ(std::vector<float>(noise.begin(), noise.begin() + 60), Noise(first, 7));
  for (const float value : noise) EXPECT_TRUE(value == -2 || value == 0 || value == 2) << value;
}

TEST(EggrollSpecTest, TheSeedOfAClientsNoiseIsADigest) {
  EXPECT_EQ(EggrollNoiseSeed(7, 3, "client-2"), 0x59fb588166c9e737U);  // hashlib.sha256(b"eggroll|7|3|client-2")
  EXPECT_NE(EggrollNoiseSeed(7, 3, "client-2"), EggrollNoiseSeed(7, 4, "client-2"));
}

TEST(EggrollSpecTest, ALogGivesBackWhatWasWritten) {
  constexpr int64_t kClients = 3, kPopulation = 18;
  const std::vector<EggrollPart> parts = {{.seed = 0x8000000000000001U, .pairs = {{0, 1}, {2, -(int64_t{1} << 25)}}}, {.seed = 7, .pairs = {}}};
  const std::vector<std::byte> log = EggrollLog(parts, kClients, kPopulation);
  ASSERT_EQ(log.size(), 3 * 8 + 9 * 4u);
  const auto read = ParseEggrollLog(log, kClients, kPopulation);
  ASSERT_THAT(read, IsOk());
  ASSERT_EQ(read->size(), 2u);
  for (size_t k = 0; k < 2; ++k) {
    EXPECT_EQ((*read)[k].seed, parts[k].seed);
    ASSERT_EQ((*read)[k].pairs.size(), parts[k].pairs.size());
    for (size_t p = 0; p < parts[k].pairs.size(); ++p) {
      EXPECT_EQ((*read)[k].pairs[p].member, parts[k].pairs[p].member);
      EXPECT_EQ((*read)[k].pairs[p].weight, parts[k].pairs[p].weight);
    }
  }
  EXPECT_TRUE(EggrollLog(parts, 1, kPopulation).empty());
  std::vector<std::byte> bad = log;
  EXPECT_THAT(ParseEggrollLog(std::span(bad).first(59), kClients, kPopulation), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("60 bytes")));
  bad[8 + 3] = std::byte{0x40};  // the first weight: 2^30 and something
  EXPECT_THAT(ParseEggrollLog(bad, kClients, kPopulation), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("at most 33554432")));
}

TEST(EggrollSpecTest, ReadsItsSettingsAndRefusesOthers) {
  const absl::StatusOr<EggrollSpec> spec = EggrollSpec::Of({.name = "eggroll", .params = {{"population", "12"}, {"sigma", "0.25"}, {"rank", "3"}, {"lr", "1"}}});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->population, 12);
  EXPECT_EQ(spec->sigma, 0.25);
  EXPECT_EQ(spec->rank, 3);
  const std::vector<std::pair<const char*, const char*>> wrong = {{"population", "13"}, {"population", "0"}, {"rank", "0"}, {"rank", "65"}, {"sigma", "-1"}, {"sigma", "x"}};
  for (const auto& [name, value] : wrong) {
    const absl::Status status = EggrollSpec::Of({.name = "eggroll", .params = {{name, value}}}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name << " " << value;
    EXPECT_NE(status.message().find(name), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace tributary
