#include "aggregator/core/planners/capacity.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::DoubleNear;
using ::testing::HasSubstr;
using tributary::testing::StatusIs;

constexpr double kInf = std::numeric_limits<double>::infinity();
const absl::Time kStart = absl::FromUnixSeconds(1'000'000);
absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }

TEST(CapacityTest, TheKneeIsWhereTheTimeCrossesTheBend) {
  // E(low) = 0.1 s, so the bend is at 0.12 s: half way from (30, 0.11) to (40, 0.13).
  const CalibrationPoint curve[] = {{10, 0.1}, {20, 0.1}, {30, 0.11}, {40, 0.13}, {50, 0.9}};
  TRIB_ASSERT_OK_AND_ASSIGN(const ServiceCapacity capacity, CapacityFromCurve(curve));
  EXPECT_TRUE(capacity.bent);
  EXPECT_THAT(capacity.knee_rate, DoubleNear(35, 1e-9));
  EXPECT_THAT(capacity.knee_seconds, DoubleNear(0.12, 1e-12));
  EXPECT_THAT(capacity.updates, DoubleNear(35 * 0.12, 1e-9));
}

TEST(CapacityTest, DoesNotDependOnHowFarBeyondTheKneeOneMeasured) {
  const CalibrationPoint fine[] = {{10, 0.1}, {30, 0.11}, {40, 0.13}};
  const CalibrationPoint with_overload[] = {{10, 0.1}, {30, 0.11}, {40, 0.13}, {100, 30}, {200, 90}};
  EXPECT_EQ(CapacityFromCurve(fine)->updates, CapacityFromCurve(with_overload)->updates);
}

TEST(CapacityTest, ASingleNoisyPointIsNoKnee) {
  const CalibrationPoint curve[] = {{10, 0.1}, {20, 0.15}, {30, 0.11}, {40, 0.13}};
  EXPECT_THAT(CapacityFromCurve(curve)->knee_rate, DoubleNear(35, 1e-9));
}

TEST(CapacityTest, ExactlyTheBendIsNotYetAbove) {
  const CalibrationPoint curve[] = {{10, 0.5}, {20, 0.6}};
  TRIB_ASSERT_OK_AND_ASSIGN(const ServiceCapacity capacity, CapacityFromCurve(curve));
  EXPECT_FALSE(capacity.bent);
  EXPECT_EQ(capacity.knee_rate, 20);
}

TEST(CapacityTest, AStraightCurveGivesALowerBoundAndSaysSo) {
  const CalibrationPoint curve[] = {{10, 0.1}, {200, 0.1}};
  TRIB_ASSERT_OK_AND_ASSIGN(const ServiceCapacity capacity, CapacityFromCurve(curve));
  EXPECT_FALSE(capacity.bent);
  EXPECT_DOUBLE_EQ(capacity.updates, 20);
}

TEST(CapacityTest, TheNotesExampleOfTwentyComesOut) {
  // A node of 16 workers, 0.1 s an update without load, that bends at 167 updates/s.
  const CalibrationPoint curve[] = {{20, 0.1}, {100, 0.1}, {500.0 / 3, 0.12}, {200, 0.3}};
  EXPECT_THAT(CapacityFromCurve(curve)->updates, DoubleNear(20, 1e-6));
}

TEST(CapacityTest, ImpossibleCurvesAreRefused) {
  const std::vector<std::vector<CalibrationPoint>> bad = {
      {}, {{10, 0.1}}, {{10, 0.1}, {10, 0.2}}, {{10, 0.1}, {5, 0.2}}, {{0, 0.1}, {5, 0.2}}, {{-1, 0.1}, {5, 0.2}},
      {{1, 0}, {5, 0.2}}, {{1, 0.1}, {5, -0.2}}, {{1, 0.1}, {kInf, 0.2}}, {{1, std::nan("")}, {2, 0.2}}, {{1, 0.1}, {2, kInf}}};
  for (const auto& curve : bad) {
    EXPECT_THAT(CapacityFromCurve(curve), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("calibration curve"))) << curve.size();
  }
}

TEST(CapacityTest, ResidualIsWhatTheLoadLeaves) {
  EXPECT_EQ(ResidualCapacity(20, 50, 0.1), 15);
  EXPECT_EQ(ResidualCapacity(20, 300, 0.1), -10);
}

// One worker: an update comes every `gap` seconds and is in hand for `busy` seconds.
double Feed(LoadEstimator* load, double from, double until, double gap, double busy) {
  double t = from;
  for (; t < until; t += gap) {
    load->OnInHand(At(t), 1);
    load->OnInHand(At(t + busy), 0);
    load->OnFolded(At(t + busy), 1);
  }
  return t;
}

TEST(LoadEstimatorTest, KnowsNothingBeforeSomethingIsFolded) {
  LoadEstimator load(absl::Seconds(16));
  EXPECT_FALSE(load.At(At(5)).has_value());
  load.OnInHand(At(6), 3);
  EXPECT_FALSE(load.At(At(8)).has_value());
  load.OnFolded(At(9), 1);
  EXPECT_TRUE(load.At(At(9)).has_value());
}

TEST(LoadEstimatorTest, CountsByHandAreRight) {
  LoadEstimator load(absl::Seconds(160));
  load.OnInHand(At(0), 2);
  load.OnInHand(At(10), 4);
  load.OnInHand(At(15), 0);   // 40 update-seconds in 15 busy ones
  load.OnFolded(At(15), 5);
  const auto known = load.At(At(20));
  ASSERT_TRUE(known.has_value());
  const LoadEstimator::Estimate estimate = *known;
  EXPECT_DOUBLE_EQ(estimate.rate, 5.0 / 15);
  EXPECT_DOUBLE_EQ(estimate.seconds, 40.0 / 5);
  EXPECT_DOUBLE_EQ(estimate.load, 40.0 / 15);
  EXPECT_DOUBLE_EQ(estimate.load, estimate.rate * estimate.seconds);
  EXPECT_DOUBLE_EQ(estimate.mean_load, 40.0 / 20);
}

TEST(LoadEstimatorTest, RestsDiluteTheMeanAndNotTheLoad) {
  LoadEstimator load(absl::Seconds(160));
  Feed(&load, 0, 600, 10, 2);
  const auto estimate = load.At(At(600));
  ASSERT_TRUE(estimate.has_value());
  EXPECT_THAT(estimate->load, DoubleNear(1, 1e-9));
  EXPECT_THAT(estimate->seconds, DoubleNear(2, 0.1));
  EXPECT_THAT(estimate->mean_load, DoubleNear(0.2, 0.02));
}

TEST(LoadEstimatorTest, ForgetsWhatIsOlderThanTheWindow) {
  LoadEstimator load(absl::Seconds(16));
  Feed(&load, 0, 100, 1, 0.5);
  const double end = Feed(&load, 100, 120, 1, 0.25);
  EXPECT_THAT(load.At(At(end))->seconds, DoubleNear(0.25, 1e-9));
  EXPECT_FALSE(load.At(At(end + 17)).has_value());
}

TEST(LoadEstimatorTest, AQueueThatOnlyGrowsShowsThoughLittleIsFolded) {
  LoadEstimator load(absl::Seconds(60));
  for (int i = 0; i <= 60; ++i) {
    load.OnInHand(At(i), 10 * i);
    load.OnFolded(At(i), 1);
  }
  EXPECT_THAT(load.At(At(60))->load, ::testing::AllOf(::testing::Gt(250), ::testing::Lt(350)));
}

TEST(LoadEstimatorTest, SpreadsALongSilenceOverItsBuckets) {
  LoadEstimator load(absl::Seconds(16));
  load.OnInHand(At(0), 3);
  load.OnFolded(At(1000), 1);  // 3 in hand all the time; only the window's part of it counts
  const auto estimate = load.At(At(1000));
  ASSERT_TRUE(estimate.has_value());
  EXPECT_THAT(estimate->load, DoubleNear(3, 1e-9));
  EXPECT_LE(estimate->seconds, 3 * 16);
  EXPECT_GE(estimate->seconds, 3 * 15);
}

TEST(LoadEstimatorTest, WorksBeforeTheEpochAndWithLateEvents) {
  LoadEstimator load(absl::Seconds(16));
  const absl::Time before = absl::FromUnixSeconds(-1000);
  load.OnInHand(before, 1);
  load.OnInHand(before + absl::Seconds(3), 2);
  load.OnFolded(before + absl::Seconds(1), 1);  // late
  EXPECT_DOUBLE_EQ(load.At(before + absl::Seconds(4))->load, (3 * 1 + 1 * 2) / 4.0);
}

TEST(LoadEstimatorTest, ANegativeCountIsNone) {
  LoadEstimator load(absl::Seconds(16));
  load.OnInHand(At(0), 1);
  load.OnInHand(At(1), -5);
  load.OnFolded(At(1), 1);
  EXPECT_DOUBLE_EQ(load.At(At(2))->load, 1);
}

// Little's law on random traffic: an M/D/1 queue at 70 % has 0.7 + 0.7²/(2·0.3) = 1.517 updates in it on average.
TEST(LoadEstimatorTest, AgreesWithQueueingTheory) {
  for (const uint64_t seed : {1, 2, 3}) {
    std::mt19937_64 random(seed);
    std::exponential_distribution<double> gap(7);
    LoadEstimator load(absl::Seconds(20000));
    std::vector<std::pair<double, int>> changes;
    double arrival = 0, free_at = 0;
    while (arrival < 20000) {
      arrival += gap(random);
      free_at = std::max(free_at, arrival) + 0.1;
      changes.emplace_back(arrival, 1);
      changes.emplace_back(free_at, -1);
    }
    std::sort(changes.begin(), changes.end());
    int64_t in_hand = 0;
    for (const auto& [at, change] : changes) {
      load.OnInHand(At(at), in_hand += change);
      if (change < 0) load.OnFolded(At(at), 1);
    }
    const auto estimate = load.At(At(changes.back().first));
    ASSERT_TRUE(estimate.has_value());
    EXPECT_THAT(estimate->mean_load, DoubleNear(1.517, 0.08)) << "seed " << seed;
    EXPECT_THAT(estimate->load, DoubleNear(1.517 / 0.7, 0.08)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tributary::aggregator
