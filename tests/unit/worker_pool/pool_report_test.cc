#include "aggregator/coordinator/pool_report.h"

#include <gmock/gmock.h>

namespace tributary::aggregator {
namespace {

TEST(RateMeterTest, ASteadyStreamIsItsRateAndSilenceDecays) {
  RateMeter meter;
  absl::Time now = absl::FromUnixSeconds(1000);
  EXPECT_EQ(meter.At(now), 0);
  for (int i = 0; i < 1000; ++i) meter.Count(now += absl::Milliseconds(100));
  EXPECT_NEAR(meter.At(now), 10, 0.2);
  EXPECT_NEAR(meter.At(now + RateMeter::kWindow), 10 / 2.71828, 0.2);
  EXPECT_LT(meter.At(now + 20 * RateMeter::kWindow), 1e-6);
}

TEST(RateMeterTest, NeedsNoClockThatStartsAnywhereInParticular) {
  RateMeter meter;
  meter.Count(absl::UnixEpoch());
  EXPECT_NEAR(meter.At(absl::UnixEpoch()), 0.1, 1e-9);
}

}  // namespace
}  // namespace tributary::aggregator
