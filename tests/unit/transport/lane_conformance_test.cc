// What every transport must satisfy (transport.h). A new transport adds one value to the list at the end.
#include <absl/time/clock.h>

#include <array>
#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/unit/transport/lane_rig.h"

namespace tributary::aggregator {
namespace {

using tributary::testing::IsOk;
using tributary::testing::StatusIs;

class LaneConformanceTest : public ::testing::TestWithParam<Wake> {
 protected:
  LaneRig rig{GetParam(), 8};
};

TEST_P(LaneConformanceTest, KeepsOrderAndContent) {
  std::array<tb_desc, 16> out;
  for (uint32_t i = 0; i < 5; ++i) ASSERT_THAT(rig.producer->Push(Desc(i)), IsOk());
  ASSERT_EQ(rig.consumer->Poll(out).value(), 5u);
  for (uint32_t i = 0; i < 5; ++i) EXPECT_TRUE(IsDesc(out[i], i));
  EXPECT_EQ(rig.consumer->Poll(out).value(), 0u);
}

TEST_P(LaneConformanceTest, AProducerWithoutCreditIsRefusedUntilTheConsumerReleases) {
  std::array<tb_desc, 16> out;
  for (uint32_t i = 0; i < 8; ++i) ASSERT_THAT(rig.producer->Push(Desc(i)), IsOk());
  EXPECT_THAT(rig.producer->Push(Desc(8)), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_EQ(rig.consumer->Poll(out).value(), 8u);
  EXPECT_THAT(rig.producer->Push(Desc(8)), StatusIs(absl::StatusCode::kUnavailable)) << "taking is not releasing";
  rig.consumer->Release(3);
  for (uint32_t i = 8; i < 11; ++i) ASSERT_THAT(rig.producer->Push(Desc(i)), IsOk());
  EXPECT_THAT(rig.producer->Push(Desc(11)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_P(LaneConformanceTest, AReplacementConsumerGetsAgainWhatWasTakenAndNotReleased) {
  std::array<tb_desc, 4> out;
  for (uint32_t i = 0; i < 6; ++i) ASSERT_THAT(rig.producer->Push(Desc(i)), IsOk());
  ASSERT_EQ(rig.consumer->Poll(out).value(), 4u);
  rig.consumer->Release(2);
  rig.Reattach();
  ASSERT_EQ(rig.consumer->Poll(out).value(), 4u);
  for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(IsDesc(out[i], i + 2));
}

TEST_P(LaneConformanceTest, ReleaseNeverGoesBackOrPastWhatWasTaken) {
  std::array<tb_desc, 4> out;
  for (uint32_t i = 0; i < 4; ++i) ASSERT_THAT(rig.producer->Push(Desc(i)), IsOk());
  ASSERT_EQ(rig.consumer->Poll(out).value(), 4u);
  rig.consumer->Release(3);
  rig.consumer->Release(1);
  rig.consumer->Release(9);
  EXPECT_EQ(rig.producer->Done().value(), 3u);
}

TEST_P(LaneConformanceTest, CursorsSurviveTheirWrapAround) {
  for (uint32_t* cursor : {&rig.header().head, &rig.header().tail, &rig.header().done}) *cursor = 0xfffffffdu;
  rig.Reattach();
  auto fresh = AttachRingProducer(rig.region()).value();
  std::array<tb_desc, 8> out;
  for (uint32_t i = 0; i < 8; ++i) ASSERT_THAT(fresh->Push(Desc(i)), IsOk());
  EXPECT_THAT(fresh->Push(Desc(8)), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_EQ(rig.consumer->Poll(out).value(), 8u);
  for (uint32_t i = 0; i < 8; ++i) EXPECT_TRUE(IsDesc(out[i], i));
  rig.consumer->Release(rig.consumer->tail());
  EXPECT_EQ(fresh->Done().value(), 5u);
}

TEST_P(LaneConformanceTest, WaitingEndsWithTheTimeoutWhenNothingComes) {
  EXPECT_FALSE(rig.consumer->Wait(absl::Milliseconds(20)));
  EXPECT_FALSE(rig.producer->WaitForProgress(absl::Milliseconds(20)));
  EXPECT_EQ(rig.consumer->late_wakeups(), 0u);
}

TEST_P(LaneConformanceTest, ASleepingConsumerIsWokenByAPush) {
  std::jthread producer([&] {
    absl::SleepFor(absl::Milliseconds(20));  // gives the consumer time to fall asleep; the result does not depend on it
    ASSERT_THAT(rig.producer->Push(Desc(1)), IsOk());
  });
  EXPECT_TRUE(rig.consumer->Wait(absl::InfiniteDuration()));
  EXPECT_EQ(rig.consumer->late_wakeups(), 0u);
}

TEST_P(LaneConformanceTest, ASleepingProducerIsWokenByARelease) {
  std::array<tb_desc, 8> out;
  for (uint32_t i = 0; i < 8; ++i) ASSERT_THAT(rig.producer->Push(Desc(i)), IsOk());
  std::jthread consumer([&] {
    ASSERT_EQ(rig.consumer->Poll(out).value(), 8u);
    absl::SleepFor(absl::Milliseconds(20));
    rig.consumer->Release(1);
  });
  EXPECT_TRUE(rig.producer->WaitForProgress(absl::InfiniteDuration()));
  EXPECT_THAT(rig.producer->Push(Desc(8)), IsOk());
}

TEST_P(LaneConformanceTest, ASlowConsumerLosesAndTearsNothingOfAHundred) {
  std::jthread producer([&] {
    for (uint32_t i = 0; i < 100; ++i) {
      while (!rig.producer->Push(Desc(i)).ok()) rig.producer->WaitForProgress(absl::Seconds(5));
    }
  });
  std::array<tb_desc, 3> out;
  uint32_t next = 0;
  while (next < 100) {
    ASSERT_TRUE(rig.consumer->Wait(absl::Seconds(30)));
    const size_t count = rig.consumer->Poll(out).value();
    absl::SleepFor(absl::Milliseconds(1));  // slow on purpose: the producer runs out of credits again and again
    for (size_t i = 0; i < count; ++i) ASSERT_TRUE(IsDesc(out[i], next++));
    rig.consumer->Release(next);
  }
  EXPECT_EQ(rig.consumer->late_wakeups(), 0u);
}

// Both ends sleep and wake as often as they can. A lost doorbell costs a second of sleep and is counted.
TEST_P(LaneConformanceTest, NoWakeUpIsLateOverTwoHundredThousandDescriptors) {
  constexpr uint32_t kCount = 200'000;
  const absl::Time start = absl::Now();
  std::jthread producer([&] {
    for (uint32_t i = 0; i < kCount; ++i) {
      while (!rig.producer->Push(Desc(i)).ok()) rig.producer->WaitForProgress(absl::Seconds(5));
    }
  });
  std::array<tb_desc, 4> out;
  uint32_t next = 0;
  while (next < kCount) {
    rig.consumer->Wait(absl::Seconds(5));
    const size_t count = rig.consumer->Poll(out).value();
    for (size_t i = 0; i < count; ++i) ASSERT_TRUE(IsDesc(out[i], next++));
    rig.consumer->Release(next);
  }
  EXPECT_EQ(rig.consumer->late_wakeups(), 0u);
  EXPECT_LT(absl::Now() - start, absl::Seconds(60));
}

INSTANTIATE_TEST_SUITE_P(Transports, LaneConformanceTest, ::testing::Values(Wake::kFutex, Wake::kEventFd),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace tributary::aggregator
