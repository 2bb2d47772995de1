#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "client/core/dataset.h"
#include "client/core/random.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

std::vector<int64_t> TenClasses(size_t count) {
  std::vector<int64_t> labels(count);
  CounterRandom random(99);
  for (int64_t& label : labels) label = static_cast<int64_t>(random.Below(10));
  return labels;
}

PartitionSpec Dirichlet(double alpha) {
  PartitionSpec spec;
  spec.kind = "dirichlet";
  spec.alpha = alpha;
  return spec;
}

PartitionSpec Shards(int64_t per_client) {
  PartitionSpec spec;
  spec.kind = "shards";
  spec.shards_per_client = per_client;
  return spec;
}

// FNV-1a over shard boundaries and indices.
uint64_t HashOf(const std::vector<std::vector<uint32_t>>& shards) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&](uint64_t value) {
    for (int i = 0; i < 8; ++i, value >>= 8) hash = (hash ^ (value & 0xff)) * 0x100000001b3;
  };
  for (const auto& shard : shards) {
    mix(shard.size());
    for (uint32_t index : shard) mix(index);
  }
  return hash;
}

// Mean over shards of the total variation distance between the shard's class shares and the whole's.
double SkewOf(const std::vector<std::vector<uint32_t>>& shards, const std::vector<int64_t>& labels) {
  std::vector<double> all(10, 0);
  for (int64_t label : labels) all[static_cast<size_t>(label)] += 1.0 / static_cast<double>(labels.size());
  double skew = 0;
  for (const auto& shard : shards) {
    std::vector<double> own(10, 0);
    for (uint32_t index : shard) own[static_cast<size_t>(labels[index])] += 1.0 / static_cast<double>(shard.size());
    for (size_t c = 0; c < 10; ++c) skew += std::abs(own[c] - all[c]) / 2 / static_cast<double>(shards.size());
  }
  return skew;
}

class PartitionTest : public ::testing::TestWithParam<PartitionSpec> {};

TEST_P(PartitionTest, IsDisjointAndCoversEverythingInEqualShares) {
  const std::vector<int64_t> labels = TenClasses(1003);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto shards, Partition(GetParam(), labels, labels.size(), 10, 7));
  ASSERT_EQ(shards.size(), 10U);
  std::set<uint32_t> seen;
  for (const auto& shard : shards) {
    EXPECT_GE(shard.size(), 98U);
    EXPECT_LE(shard.size(), 102U);
    for (uint32_t index : shard) {
      EXPECT_LT(index, labels.size());
      EXPECT_TRUE(seen.insert(index).second) << index << " is in two shards";
    }
  }
  EXPECT_EQ(seen.size(), labels.size());
}

TEST_P(PartitionTest, DependsOnTheSeedAloneAndIsRepeatable) {
  const std::vector<int64_t> labels = TenClasses(500);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto first, Partition(GetParam(), labels, labels.size(), 4, 7));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto again, Partition(GetParam(), labels, labels.size(), 4, 7));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto other, Partition(GetParam(), labels, labels.size(), 4, 8));
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

TEST_P(PartitionTest, GivesOneExampleEachWhenThereAreAsManyShardsAsExamples) {
  const std::vector<int64_t> labels = TenClasses(12);
  PartitionSpec spec = GetParam();
  spec.shards_per_client = 1;
  TRIB_ASSERT_OK_AND_ASSIGN(const auto shards, Partition(spec, labels, labels.size(), 12, 1));
  for (const auto& shard : shards) EXPECT_EQ(shard.size(), 1U);
}

INSTANTIATE_TEST_SUITE_P(Kinds, PartitionTest, ::testing::Values(PartitionSpec{}, Dirichlet(0.3), Dirichlet(100), Shards(2), Shards(5)),
                         [](const auto& info) { return info.param.kind + std::to_string(info.index); });

TEST(PartitionGoldenTest, IsTheSameOnEveryMachine) {
  const std::vector<int64_t> labels = TenClasses(2000);
  const std::pair<PartitionSpec, uint64_t> golden[] = {
      {PartitionSpec{}, 0x92a4f9008eed8621}, {Dirichlet(0.3), 0x316c8d041a4e0d99}, {Shards(2), 0xd64a15a0899f7ba5}};
  for (const auto& [spec, hash] : golden) {
    TRIB_ASSERT_OK_AND_ASSIGN(const auto shards, Partition(spec, labels, labels.size(), 10, 42));
    EXPECT_EQ(HashOf(shards), hash) << spec.kind << ": got " << fmt::format("{:#x}", HashOf(shards));
  }
}

TEST(PartitionSkewTest, GrowsAsAlphaFalls) {
  const std::vector<int64_t> labels = TenClasses(5000);
  double before = 0;
  for (double alpha : {1000.0, 1.0, 0.3, 0.05}) {
    TRIB_ASSERT_OK_AND_ASSIGN(const auto shards, Partition(Dirichlet(alpha), labels, labels.size(), 10, 3));
    const double skew = SkewOf(shards, labels);
    EXPECT_GT(skew, before + 0.03) << "alpha " << alpha;
    before = skew;
  }
  EXPECT_GT(before, 0.6);
}

TEST(PartitionSkewTest, ShardsHoldAtMostTheirPiecesClasses) {
  std::vector<int64_t> labels(1000);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int64_t>(i % 10);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto shards, Partition(Shards(2), labels, labels.size(), 5, 3));  // ten pieces, ten classes
  for (const auto& shard : shards) {
    std::set<int64_t> classes;
    for (uint32_t index : shard) classes.insert(labels[index]);
    EXPECT_LE(classes.size(), 2U);
  }
}

TEST(PartitionErrorsTest, NameWhatIsWrong) {
  const std::vector<int64_t> labels = TenClasses(10);
  using absl::StatusCode;
  EXPECT_THAT(Partition({}, labels, 10, 11, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("11 shards of 10 examples")));
  EXPECT_THAT(Partition({}, labels, 10, 0, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("at least 1 shard")));
  EXPECT_THAT(Partition({}, labels, 9, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("10 labels for 9 examples")));
  EXPECT_THAT(Partition(Dirichlet(0), labels, 10, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("alpha > 0")));
  EXPECT_THAT(Partition(Dirichlet(NAN), labels, 10, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("alpha > 0")));
  EXPECT_THAT(Partition(Dirichlet(1), {}, 10, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("regression")));
  EXPECT_THAT(Partition(Shards(6), labels, 10, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("1 to 5")));
  PartitionSpec spec;
  spec.kind = "by_file";
  EXPECT_THAT(Partition(spec, labels, 10, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("by_file")));
  spec.kind = "random";
  EXPECT_THAT(Partition(spec, labels, 10, 2, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("random")));
}

TEST(PartitionErrorsTest, TinyAndHugeAlphaStillCover) {
  const std::vector<int64_t> labels = TenClasses(300);
  for (double alpha : {1e-300, 1e-6, 1e12}) {
    TRIB_ASSERT_OK_AND_ASSIGN(const auto shards, Partition(Dirichlet(alpha), labels, labels.size(), 7, 3));
    size_t total = 0;
    for (const auto& shard : shards) total += shard.size();
    EXPECT_EQ(total, labels.size());
  }
}

TEST(CounterRandomTest, HasTheMomentsOfItsDistributions) {
  CounterRandom random(5);
  constexpr int kDraws = 200'000;
  for (double shape : {0.3, 1.0, 4.5}) {
    double sum = 0;
    double squares = 0;
    for (int i = 0; i < kDraws; ++i) {
      const double g = random.Gamma(shape);
      sum += g;
      squares += g * g;
    }
    const double mean = sum / kDraws;
    EXPECT_NEAR(mean, shape, 5 * std::sqrt(shape / kDraws));  // five standard errors
    EXPECT_NEAR(squares / kDraws - mean * mean, shape, 0.06 * shape + 0.02);
  }
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double n = random.Normal();
    sum += n;
    squares += n * n;
  }
  EXPECT_NEAR(sum / kDraws, 0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(squares / kDraws, 1, 0.02);
}

TEST(CounterRandomTest, DrawsBelowItsBoundEvenly) {
  CounterRandom random(6);
  std::vector<int> counts(7, 0);
  for (int i = 0; i < 70'000; ++i) ++counts[random.Below(7)];
  for (int count : counts) EXPECT_NEAR(count, 10'000, 500);
  EXPECT_EQ(random.Below(1), 0U);
}

}  // namespace
}  // namespace tributary::client
