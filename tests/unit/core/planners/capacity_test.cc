#include "aggregator/core/planners/capacity.h"

#include <gmock/gmock.h>

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

TEST(WindowSumTest, ForgetsWhatIsOlderThanTheWindow) {
  WindowSum sum(absl::Seconds(16));
  for (int i = 0; i < 100; ++i) sum.Add(At(i), 2);
  EXPECT_EQ(sum.At(At(99)).count, 16);
  EXPECT_EQ(sum.At(At(99)).sum, 32);
  EXPECT_EQ(sum.At(At(107)).count, 8);
  EXPECT_EQ(sum.At(At(200)).count, 0);
}

TEST(WindowSumTest, BucketsAreReusedAfterALongRest) {
  WindowSum sum(absl::Seconds(16));
  sum.Add(At(0), 5);
  sum.Add(At(16 * 1000), 7);  // the same place in the ring
  EXPECT_EQ(sum.At(At(16 * 1000)).sum, 7);
  EXPECT_EQ(sum.At(At(16 * 1000)).count, 1);
}

TEST(WindowSumTest, WorksBeforeTheEpochAndWithLateEvents) {
  WindowSum sum(absl::Seconds(16));
  const absl::Time before = absl::FromUnixSeconds(-1000);
  sum.Add(before, 1);
  sum.Add(before + absl::Seconds(3), 1);
  sum.Add(before + absl::Seconds(1), 1);  // late: counts into the newest bucket
  EXPECT_EQ(sum.At(before + absl::Seconds(3)).count, 3);
}

TEST(LoadEstimatorTest, KnowsNothingBeforeTheFirstEvent) {
  const LoadEstimator load(absl::Seconds(10));
  EXPECT_EQ(load.Rate(At(5)), 0);
  EXPECT_EQ(load.Seconds(At(5)), 0);
  EXPECT_EQ(load.Load(At(5)), 0);
}

TEST(LoadEstimatorTest, FollowsAConstantRate) {
  LoadEstimator load(absl::Seconds(120));
  for (int i = 0; i < 6000; ++i) {
    load.OnArrival(At(i * 0.1));
    load.OnFolded(At(i * 0.1), absl::Milliseconds(400));
  }
  EXPECT_THAT(load.Rate(At(600)), DoubleNear(10, 0.1));
  EXPECT_THAT(load.Seconds(At(600)), DoubleNear(0.4, 1e-9));
  EXPECT_THAT(load.Load(At(600)), DoubleNear(4, 0.05));
}

TEST(LoadEstimatorTest, FollowsAStepWithinOneWindow) {
  LoadEstimator load(absl::Seconds(60));
  for (int i = 0; i < 120; ++i) load.OnArrival(At(i));             // 1/s for 120 s
  for (int i = 0; i < 300; ++i) load.OnArrival(At(120 + i * 0.1));  // 10/s for 30 s …
  EXPECT_THAT(load.Rate(At(150)), ::testing::AllOf(::testing::Gt(4), ::testing::Lt(7)));
  for (int i = 300; i < 600; ++i) load.OnArrival(At(120 + i * 0.1));  // … and 30 more
  EXPECT_THAT(load.Rate(At(180)), DoubleNear(10, 0.5));
}

TEST(LoadEstimatorTest, FollowsPoissonArrivals) {
  for (const uint64_t seed : {1, 2, 3}) {
    std::mt19937_64 random(seed);
    std::exponential_distribution<double> gap(20);
    LoadEstimator load(absl::Seconds(120));
    double now = 0;
    while (now < 1000) load.OnArrival(At(now += gap(random)));
    EXPECT_THAT(load.Rate(At(now)), DoubleNear(20, 2)) << "seed " << seed;  // 5 standard deviations of 2400 arrivals
  }
}

TEST(LoadEstimatorTest, ABurstAtTheStartIsNoRateWithoutBound) {
  LoadEstimator load(absl::Seconds(16));
  load.OnArrival(At(0), 60);
  EXPECT_LE(load.Rate(At(0)), 60);  // a bucket is one second here
  EXPECT_THAT(load.Rate(At(10)), DoubleNear(6, 1e-9));
}

TEST(LoadEstimatorTest, ARestForgetsTheRateAndKeepsTheTime) {
  LoadEstimator load(absl::Seconds(10));
  load.OnArrival(At(0));
  load.OnFolded(At(1), absl::Milliseconds(300));
  EXPECT_EQ(load.Rate(At(100)), 0);
  EXPECT_DOUBLE_EQ(load.Seconds(At(100)), 0.3);
}

TEST(LoadEstimatorTest, ANegativeTimeCountsAsNone) {
  LoadEstimator load(absl::Seconds(10));
  load.OnFolded(At(1), absl::Milliseconds(-300));
  EXPECT_EQ(load.Seconds(At(1)), 0);
}

}  // namespace
}  // namespace tributary::aggregator
