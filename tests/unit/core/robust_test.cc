// The rules that need all updates at once, by hand and against direct definitions (algorithms.md §12).
#include "aggregator/core/robust.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "aggregator/core/aggregate.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tributary::testing::StatusIs;
using Rows = std::vector<std::vector<double>>;

const Rows kGolden = {{1, 2, 3}, {1.1, 1.9, 3.2}, {.9, 2.1, 2.9}, {1.05, 2.05, 3.05}, {.95, 1.95, 3.1}, {100, -100, 50}, {-80, 90, -60}};

// One commit of a model at zero: what the rule makes of the updates. `names`: clients in the order in which their updates come.
absl::StatusOr<std::vector<double>> Reduced(const StrategySpec& spec, const Rows& updates, MemoryState* state = nullptr,
                                            std::vector<std::string> names = {}) {
  TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Strategy> strategy, MakeStrategy(spec));
  const TensorLayout layout = VectorLayout(static_cast<int64_t>(updates[0].size()), DType::kF64);
  Aggregate aggregate(*strategy, layout, Arithmetic::kFloat64, 100);
  std::vector<RoundContributor> contributors;
  for (size_t k = 0; k < updates.size(); ++k) {
    RoundContributor contributor;
    contributor.key = {.client = names.empty() ? std::string(1, static_cast<char>('a' + k)) : names[k], .task = k + 1, .update = Id(k)};
    contributor.weight = 1;
    TRIB_RETURN_IF_ERROR(aggregate.Fold(contributor, AsBytes(updates[k])));
    contributors.push_back(contributor);
  }
  const std::vector<std::byte> zero(layout.total_bytes());
  std::vector<std::byte> next(layout.total_bytes());
  MemoryState fresh;
  TRIB_RETURN_IF_ERROR(aggregate.Step({.facts = {.version = 1, .sum_weight = 1, .registered = static_cast<int64_t>(updates.size()), .contributors = contributors},
                                       .previous = zero, .base = {}},
                                      state == nullptr ? &fresh : state, next));
  return FromBytes<double>(next);
}

TEST(RobustTest, KrumScoresAreTheGoldenOnes) {
  const TensorLayout layout = VectorLayout(3, DType::kF64);
  std::vector<std::vector<std::byte>> bytes;
  std::vector<WholeUpdate> updates;
  for (const auto& row : kGolden) bytes.push_back(AsBytes(row));
  for (const auto& one : bytes) updates.push_back({.client = "c", .flat = one});
  const std::vector<double> scores = KrumScores({.layout = &layout, .updates = updates, .registered = 7, .row = {}}, 2);
  const std::vector<double> expected = {.0525, .1425, .1425, .0775, .0725, 67168.9825, 54781.2375};
  for (size_t i = 0; i < 7; ++i) EXPECT_NEAR(scores[i], expected[i], 1e-9 * std::max(1.0, expected[i])) << i;
  EXPECT_EQ(*Reduced({.name = "krum", .params = {{"byzantine", "2"}}}, kGolden), kGolden[0]);
}

TEST(RobustTest, KrumTiesFallToTheLowerClientWhateverCameFirst) {
  const Rows updates = {{1}, {-1}, {1}, {-1}, {0}, {0}};  // the two zeros tie
  const StrategySpec krum{.name = "krum", .params = {{"byzantine", "1"}}};
  EXPECT_THAT(*Reduced(krum, updates, nullptr, {"f", "e", "d", "c", "b", "a"}), ElementsAre(0));
  const Rows marked = {{2}, {3}, {4}, {5}, {6}};  // n = 2f + 3: scores 5 2 2 2 5, lowest client of the middle three
  EXPECT_THAT(*Reduced(krum, marked, nullptr, {"a", "e", "d", "c", "b"}), ElementsAre(5));
}

TEST(RobustTest, KrumRefusesFewerThanTwiceTheByzantinePlusThree) {
  const Rows four(kGolden.begin(), kGolden.begin() + 4);
  EXPECT_THAT(Reduced({.name = "krum", .params = {{"byzantine", "1"}}}, four).status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least 5")));
  JobSpec spec;
  spec.strategy = {.name = "krum", .params = {{"byzantine", "1"}}};
  spec.cohort.size = 4;
  EXPECT_THAT((*MakeStrategy(spec.strategy))->CheckJob(spec), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least 5")));
}

TEST(RobustTest, MultiKrumAveragesTheLowestScores) {
  const std::vector<double> kept = *Reduced({.name = "multi_krum", .params = {{"byzantine", "2"}, {"keep", "3"}}}, kGolden);
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(kept[i], (kGolden[0][i] + kGolden[3][i] + kGolden[4][i]) / 3, 1e-15);
  const std::vector<double> all_but_two = *Reduced({.name = "multi_krum", .params = {{"byzantine", "2"}}}, kGolden);
  for (size_t i = 0; i < 3; ++i) {
    double mean = 0;
    for (size_t k = 0; k < 5; ++k) mean += kGolden[k][i] / 5;
    EXPECT_NEAR(all_but_two[i], mean, 1e-14);
  }
}

TEST(RobustTest, MedianTakesTheMiddleOrTheMeanOfTheTwoMiddles) {
  EXPECT_THAT(*Reduced({.name = "median", .params = {}}, {{5, 1}, {-1, 1}, {2, 7}}), ElementsAre(2, 1));
  EXPECT_THAT(*Reduced({.name = "median", .params = {}}, {{5, 1}, {-1, 1}, {2, 7}, {3, 2}}), ElementsAre(2.5, 1.5));
}

TEST(RobustTest, TrimmedMeanLeavesOutBothEnds) {
  EXPECT_THAT(*Reduced({.name = "trimmed_mean", .params = {{"trim", "1"}}}, {{1e9}, {1}, {3}, {-1e9}}), ElementsAre(2));
  EXPECT_THAT(Reduced({.name = "trimmed_mean", .params = {{"trim", "2"}}}, {{1}, {1}, {3}, {4}}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than 4")));
}

TEST(RobustTest, GeometricMedianOfPointsOnALineIsTheirMedianAndBalancesDirections) {
  EXPECT_NEAR((*Reduced({.name = "geometric_median", .params = {}}, {{0}, {1}, {100}}))[0], 1, 1e-4);
  const std::vector<double> middle = *Reduced({.name = "geometric_median", .params = {}}, {{0, 0}, {4, 0}, {0, 3}, {5, 6}});
  // Unit vectors to the points sum to zero at the minimiser.
  Rows points = {{0, 0}, {4, 0}, {0, 3}, {5, 6}};
  double sum0 = 0, sum1 = 0;
  for (const auto& p : points) {
    const double length = std::hypot(p[0] - middle[0], p[1] - middle[1]);
    sum0 += (p[0] - middle[0]) / length;
    sum1 += (p[1] - middle[1]) / length;
  }
  EXPECT_NEAR(sum0, 0, 1e-9);
  EXPECT_NEAR(sum1, 0, 1e-9);
}

TEST(RobustTest, CenteredClippingBoundsWhatOneUpdateMoves) {
  const StrategySpec one{.name = "centered_clipping", .params = {{"radius", "1"}, {"iterations", "1"}}};
  EXPECT_THAT(*Reduced(one, {{0.5}, {-100}}), ElementsAre(-0.25));
  const StrategySpec previous{.name = "centered_clipping", .params = {{"radius", "1"}, {"iterations", "1"}, {"start", "previous"}}};
  MemoryState state;
  EXPECT_THAT(*Reduced(previous, {{3}, {3}}, &state), ElementsAre(1));
  EXPECT_THAT(*Reduced(previous, {{3}, {3}}, &state), ElementsAre(2));
}

}  // namespace
}  // namespace tributary::aggregator
