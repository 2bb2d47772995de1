// The ring lane against an other end that lies.
#include <absl/time/clock.h>

#include <array>
#include <random>
#include <thread>

#include "tests/support/status_matchers.h"
#include "tests/unit/transport/lane_rig.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

TEST(RingLaneTest, CursorsOfOneOwnerShareACacheLineWithNobody) {
  EXPECT_EQ(offsetof(tb_lane_header, head) / 64, 1u);
  EXPECT_EQ(offsetof(tb_lane_header, want_credit) / 64, 1u);
  EXPECT_EQ(offsetof(tb_lane_header, tail) / 64, 2u);
  EXPECT_EQ(offsetof(tb_lane_header, done) / 64, 2u);
  EXPECT_EQ(offsetof(tb_lane_header, asleep) / 64, 2u);
  EXPECT_EQ(LaneBytes(64), 192u + 64 * 32);
}

TEST(RingLaneTest, AProducerClosesTheLaneWhenDoneLies) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    LaneRig rig(Wake::kFutex, 8);
    for (uint32_t n = 0; n < 3; ++n) ASSERT_THAT(rig.producer->Push(Desc(n)), IsOk());
    const uint32_t lie = i == 0 ? 4 : 4 + random() % 0xfffffff0u;
    rig.header().done = lie;
    EXPECT_THAT(rig.producer->Push(Desc(3)), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("lane closed")));
    rig.header().done = 0;  // too late to be honest
    EXPECT_THAT(rig.producer->Push(Desc(3)), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_THAT(rig.producer->Done(), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_TRUE(rig.producer->ArmProgress()) << "a closed lane must not be slept on";
  }
}

TEST(RingLaneTest, AProducerClosesTheLaneWhenDoneGoesBack) {
  LaneRig rig(Wake::kFutex, 8);
  for (uint32_t n = 0; n < 3; ++n) ASSERT_THAT(rig.producer->Push(Desc(n)), IsOk());
  rig.header().done = 2;
  ASSERT_EQ(rig.producer->Done().value(), 2u);
  rig.header().done = 1;
  EXPECT_THAT(rig.producer->Done(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(RingLaneTest, AConsumerClosesTheLaneWhenHeadLies) {
  std::array<tb_desc, 16> out;
  for (const uint32_t lie : {9u, 0x80000000u, 0xffffffffu}) {
    LaneRig rig(Wake::kFutex, 8);
    rig.header().head = lie;
    EXPECT_TRUE(rig.consumer->Wait(absl::InfiniteDuration())) << "a lie is something to look at";
    EXPECT_THAT(rig.consumer->Poll(out), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("lane closed")));
  }
  LaneRig rig(Wake::kFutex, 8);
  ASSERT_THAT(rig.producer->Push(Desc(0)), IsOk());
  ASSERT_THAT(rig.producer->Push(Desc(1)), IsOk());
  ASSERT_EQ(rig.consumer->Poll(out).value(), 2u);
  rig.header().head = 1;  // back behind what was taken
  EXPECT_THAT(rig.consumer->Poll(out), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(RingLaneTest, LaterChangesOfTheGeometryAreNotSeen) {
  LaneRig rig(Wake::kFutex, 8);
  rig.header().capacity = 0x40000000;
  rig.header().magic = 0;
  for (uint32_t n = 0; n < 8; ++n) ASSERT_THAT(rig.producer->Push(Desc(n)), IsOk());
  EXPECT_THAT(rig.producer->Push(Desc(8)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(RingLaneTest, AttachRefusesWhatIsNotALane) {
  LaneRig rig(Wake::kFutex, 8);
  const auto region = rig.region();
  EXPECT_THAT(AttachRingConsumer(region.first(100)), StatusIs(absl::StatusCode::kInvalidArgument));
  const tb_lane_header good = rig.header();
  for (const auto& spoil : {+[](tb_lane_header& h) { h.magic ^= 1; }, +[](tb_lane_header& h) { h.abi_version = 99; },
                            +[](tb_lane_header& h) { h.capacity = 7; }, +[](tb_lane_header& h) { h.capacity = 0; },
                            +[](tb_lane_header& h) { h.capacity = 16; }, +[](tb_lane_header& h) { h.capacity = 0x80000000; },
                            +[](tb_lane_header& h) { h.head = 9; }, +[](tb_lane_header& h) { h.done = 1; }}) {
    rig.header() = good;
    spoil(rig.header());
    EXPECT_THAT(AttachRingConsumer(region), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_THAT(AttachRingProducer(region), StatusIs(absl::StatusCode::kDataLoss));
  }
  EXPECT_THAT(FormatLane(region, 6), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(FormatLane(region, TB_MAX_LANE_CAPACITY * 2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(FormatLane(region, 1024), StatusIs(absl::StatusCode::kInvalidArgument));
}

// The counter that the other tests assert to be 0 does count: a producer that writes without ringing.
TEST(RingLaneTest, AForgottenDoorbellIsCountedAndTheDescriptorStillFound) {
  LaneRig rig(Wake::kFutex, 8);
  std::jthread forgetful([&] {
    while (std::atomic_ref<uint32_t>(rig.header().asleep).load() == 0) absl::SleepFor(absl::Milliseconds(1));
    reinterpret_cast<tb_desc*>(rig.region().data() + sizeof(tb_lane_header))[0] = Desc(0);
    std::atomic_ref<uint32_t>(rig.header().head).store(1);
  });
  EXPECT_TRUE(rig.consumer->Wait(absl::Seconds(10)));
  EXPECT_EQ(rig.consumer->late_wakeups(), 1u);
}

}  // namespace
}  // namespace tributary::aggregator
