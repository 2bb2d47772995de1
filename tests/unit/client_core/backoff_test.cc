#include "client/core/backoff.h"

#include <gtest/gtest.h>

#include <limits>

namespace tributary::client {
namespace {

constexpr uint64_t kHighest = std::numeric_limits<uint64_t>::max();

TEST(BackoffTest, FirstRetryComesWithinATenthOfASecond) {
  Backoff backoff;
  EXPECT_NEAR(absl::ToDoubleSeconds(backoff.Next(kHighest)), 0.1, 1e-9);
}

TEST(BackoffTest, CapDoublesFromOneSecondToSixty) {
  Backoff backoff;
  backoff.Next(kHighest);
  for (const double expected : {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0}) {
    EXPECT_NEAR(absl::ToDoubleSeconds(backoff.Next(kHighest)), expected, 1e-6);
  }
  for (int i = 0; i < 100; ++i) backoff.Next(kHighest);
  EXPECT_NEAR(absl::ToDoubleSeconds(backoff.Next(kHighest)), 60.0, 1e-6);
}

TEST(BackoffTest, JitterIsFull) {
  Backoff backoff;
  backoff.Next(0);
  backoff.Next(0);
  EXPECT_EQ(backoff.Next(0), absl::ZeroDuration());
  EXPECT_NEAR(absl::ToDoubleSeconds(backoff.Next(uint64_t{1} << 63)), 2.0, 1e-6);
}

TEST(BackoffTest, ServersPushBackOverridesWithinTwentyPercent) {
  Backoff backoff;
  EXPECT_NEAR(absl::ToDoubleSeconds(backoff.Next(0, absl::Seconds(10))), 8.0, 1e-6);
  EXPECT_NEAR(absl::ToDoubleSeconds(backoff.Next(kHighest, absl::Seconds(10))), 12.0, 1e-6);
  EXPECT_EQ(backoff.Next(kHighest, absl::Seconds(-5)), absl::ZeroDuration());
}

TEST(BackoffTest, AServerThatSaysWhenToComeBackIsNoFailure) {
  Backoff backoff;
  for (int i = 0; i < 30; ++i) backoff.Next(kHighest, absl::Milliseconds(50));  // a full pool
  EXPECT_LE(backoff.Next(kHighest), absl::Milliseconds(100)) << "and then a lost connection: tried again at once";
}

TEST(BackoffTest, SuccessStartsTheScheduleOver) {
  Backoff backoff;
  for (int i = 0; i < 5; ++i) backoff.Next(kHighest);
  backoff.Reset();
  EXPECT_LE(backoff.Next(kHighest), absl::Milliseconds(100));
}

}  // namespace
}  // namespace tributary::client
