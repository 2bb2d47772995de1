// What every transport must satisfy (transport.h), once for each way of waking. A new transport adds one value to the list at the end.
// Ends are threads of this process here; process_conformance_test.cc has the same with processes that are killed.
#include <absl/time/clock.h>
#include <poll.h>

#include <array>
#include <deque>
#include <random>
#include <thread>

#include "tests/integration/transport/transport_rig.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

// The core of the contract as one verdict, so that it can be shown to reject transports that are wrong: "" or what is not right.
std::string Complaint(const TransportRig& rig, LaneProducer& producer, LaneConsumer& consumer) {
  uint32_t pushed = 0, taken = 0, released = 0;
  std::array<tb_desc, 3> out;
  for (int step = 0; step < 400; ++step) {
    const bool full = pushed - released == producer.capacity();
    const absl::Status push = producer.Push(rig.Desc(pushed));
    if (push.ok() == full) return fmt::format("push with {} of {} slots in use gave {}", pushed - released, producer.capacity(), push.ToString());
    pushed += push.ok() ? 1 : 0;
    if (step % 5 < 3 && taken < pushed) {
      const absl::StatusOr<size_t> count = consumer.Poll(std::span(out).first(1 + step % 3));
      if (!count.ok()) return count.status().ToString();
      if (*count == 0) return fmt::format("{} of {} taken, and nothing comes", taken, pushed);
      for (size_t i = 0; i < *count; ++i, ++taken) {
        if (!rig.IsDesc(out[i], taken)) return fmt::format("expected number {}, got {}", taken, out[i].round);
      }
    }
    if (step % 7 == 0) {
      consumer.Release(taken);
      released = taken;
    }
  }
  return "";
}

// Transports that are wrong in one way each.
class WrongConsumer final : public LaneConsumer {
 public:
  enum class Fault { kRepeats, kDrops, kSwaps, kTears, kReleasesTooLittle };
  WrongConsumer(LaneConsumer* inner, Fault fault) : inner_(inner), fault_(fault) {}
  absl::StatusOr<size_t> Poll(std::span<tb_desc> out) override {
    if (fault_ == Fault::kDrops && ++polls_ == 20) inner_->Poll(out).IgnoreError();
    TRIB_ASSIGN_OR_RETURN(const size_t count, inner_->Poll(out));
    if (count == 0) return count;
    if (fault_ == Fault::kRepeats && ++polls_ == 20) out[0] = last_;
    if (fault_ == Fault::kSwaps && count > 1) std::swap(out[0], out[1]);
    if (fault_ == Fault::kTears && ++polls_ == 20) out[0].key_lo = last_.key_lo;
    last_ = out[count - 1];
    return count;
  }
  void Release(uint32_t done) override { inner_->Release(fault_ == Fault::kReleasesTooLittle && done > 0 ? done - 1 : done); }
  bool Wait(absl::Duration timeout) override { return inner_->Wait(timeout); }
  bool Arm() override { return inner_->Arm(); }
  void Disarm(bool timed_out) override { inner_->Disarm(timed_out); }
  uint32_t tail() const override { return inner_->tail(); }
  uint64_t late_wakeups() const override { return inner_->late_wakeups(); }

 private:
  LaneConsumer* const inner_;
  const Fault fault_;
  int polls_ = 0;
  tb_desc last_{};
};

TEST(TransportConformanceSuiteTest, RejectsTransportsThatRepeatDropSwapTearOrMiscountCredits) {
  using Fault = WrongConsumer::Fault;
  for (const Fault fault : {Fault::kRepeats, Fault::kDrops, Fault::kSwaps, Fault::kTears, Fault::kReleasesTooLittle}) {
    TransportRig rig(Way::kRingFutex, 8);
    WrongConsumer wrong(rig.consumer.get(), fault);
    EXPECT_NE(Complaint(rig, *rig.producer, wrong), "") << "fault " << static_cast<int>(fault);
  }
}

class TransportConformanceTest : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (NeedsBpf(GetParam())) TRIB_REQUIRE_OR_SKIP("bpf", BpfMissing());
    rig = std::make_unique<TransportRig>(GetParam(), 8);
  }
  void PushAll(uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; ++i) ASSERT_THAT(rig->producer->Push(rig->Desc(i)), IsOk());
  }
  // Exactly these come next.
  void ExpectPolled(uint32_t from, uint32_t to) {
    std::array<tb_desc, 16> out;
    uint32_t next = from;
    while (next < to) {
      ASSERT_TRUE(rig->consumer->Wait(absl::Seconds(20))) << "nothing after " << next;
      TRIB_ASSERT_OK_AND_ASSIGN(const size_t count, rig->consumer->Poll(std::span(out).first(std::min<size_t>(out.size(), to - next))));
      for (size_t i = 0; i < count; ++i, ++next) ASSERT_TRUE(rig->IsDesc(out[i], next)) << "expected number " << next << ", got " << out[i].round;
    }
  }
  std::unique_ptr<TransportRig> rig;
};

TEST_P(TransportConformanceTest, KeepsOrderAndContent) {
  PushAll(0, 5);
  ExpectPolled(0, 5);
  std::array<tb_desc, 4> out;
  EXPECT_EQ(rig->consumer->Poll(out).value(), 0u);
}

TEST_P(TransportConformanceTest, NothingIsRepeatedDroppedSwappedTornOrMiscounted) { EXPECT_EQ(Complaint(*rig, *rig->producer, *rig->consumer), ""); }

TEST_P(TransportConformanceTest, AProducerWithoutCreditIsRefusedUntilTheConsumerReleases) {
  PushAll(0, 8);
  EXPECT_THAT(rig->producer->Push(rig->Desc(8)), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no credit")));
  ExpectPolled(0, 8);
  EXPECT_THAT(rig->producer->Push(rig->Desc(8)), StatusIs(absl::StatusCode::kUnavailable)) << "taking is not releasing";
  rig->consumer->Release(3);
  PushAll(8, 11);
  EXPECT_THAT(rig->producer->Push(rig->Desc(11)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_P(TransportConformanceTest, AReplacementConsumerGetsAgainWhatWasTakenAndNotReleased) {
  PushAll(0, 6);
  ExpectPolled(0, 4);
  rig->consumer->Release(2);
  rig->ReplaceConsumer();
  ExpectPolled(2, 6);
  rig->consumer->Release(6);
  PushAll(6, 9);
  ExpectPolled(6, 9);
}

// The consumer never ran: what was pushed lies in the lane, and the doorbells and records for it moved nothing.
TEST_P(TransportConformanceTest, AConsumerThatStartsLateReplaysEverything) {
  rig->KillConsumer();
  TRIB_ASSERT_OK_AND_ASSIGN(const bool queued, ArmForAbsentConsumer(rig->bytes()));
  EXPECT_FALSE(queued);
  PushAll(0, 5);
  EXPECT_TRUE(ArmForAbsentConsumer(rig->bytes()).value()) << "five are queued: no need to wait for a ring";
  rig->StartConsumer();
  ExpectPolled(0, 5);
  PushAll(5, 8);
  ExpectPolled(5, 8);
}

TEST_P(TransportConformanceTest, AReplacementProducerGoesOnBehindItsPredecessor) {
  PushAll(0, 3);
  rig->KillProducer();
  rig->StartProducer();
  EXPECT_EQ(rig->producer->pushed(), 3u);
  PushAll(3, 6);
  ExpectPolled(0, 6);
  rig->consumer->Release(6);
  EXPECT_EQ(rig->producer->Done().value(), 6u);
}

TEST_P(TransportConformanceTest, ReleaseNeverGoesBackOrPastWhatWasTaken) {
  PushAll(0, 4);
  ExpectPolled(0, 4);
  rig->consumer->Release(3);
  rig->consumer->Release(1);
  rig->consumer->Release(9);
  EXPECT_EQ(rig->producer->Done().value(), 3u);
}

TEST_P(TransportConformanceTest, CursorsSurviveTheirWrapAround) {
  for (uint32_t* cursor : {&rig->header().head, &rig->header().tail, &rig->header().done}) *cursor = 0xfffffffdu;
  rig->producer.reset();
  rig->consumer.reset();
  rig->OpenProducer();
  rig->OpenConsumer();
  PushAll(0, 8);
  EXPECT_THAT(rig->producer->Push(rig->Desc(8)), StatusIs(absl::StatusCode::kUnavailable));
  ExpectPolled(0, 8);
  rig->consumer->Release(rig->consumer->tail());
  EXPECT_EQ(rig->producer->Done().value(), 5u);
}

TEST_P(TransportConformanceTest, AnEndSaysOnlyWhatItIs) {
  tb_desc other = rig->Desc(0);
  other.src += 1000;
  EXPECT_THAT(rig->producer->Push(other), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected a descriptor from")));
  other = rig->Desc(0);
  other.dst += 1000;
  EXPECT_THAT(rig->producer->Push(other), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(rig->producer->pushed(), 0u);
}

TEST_P(TransportConformanceTest, APausedLaneTakesNothingAndLosesNothing) {
  PushAll(0, 2);
  ASSERT_THAT(SetLanePaused(rig->bytes(), true), IsOk());
  EXPECT_THAT(rig->producer->Push(rig->Desc(2)), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("paused")));
  EXPECT_EQ(LaneBacklog(rig->bytes()).value(), 2u);
  ExpectPolled(0, 2);
  rig->consumer->Release(2);
  EXPECT_EQ(LaneBacklog(rig->bytes()).value(), 0u);
  ASSERT_THAT(SetLanePaused(rig->bytes(), false), IsOk());
  PushAll(2, 4);
  ExpectPolled(2, 4);
}

TEST_P(TransportConformanceTest, WaitingEndsWithTheTimeoutWhenNothingComes) {
  EXPECT_FALSE(rig->consumer->Wait(absl::Milliseconds(20)));
  EXPECT_FALSE(rig->producer->WaitForProgress(absl::Milliseconds(20)));
  EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
}

TEST_P(TransportConformanceTest, ASleepingConsumerIsWokenByAPush) {
  std::jthread producer([&] {
    absl::SleepFor(absl::Milliseconds(20));  // gives the consumer time to fall asleep; the result does not depend on it
    ASSERT_THAT(rig->producer->Push(rig->Desc(1)), IsOk());
  });
  EXPECT_TRUE(rig->consumer->Wait(absl::InfiniteDuration()));
  EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
}

TEST_P(TransportConformanceTest, ASleepingProducerIsWokenByARelease) {
  PushAll(0, 8);
  std::jthread consumer([&] {
    ExpectPolled(0, 8);
    absl::SleepFor(absl::Milliseconds(20));
    rig->consumer->Release(1);
  });
  const absl::Time start = absl::Now();
  EXPECT_TRUE(rig->producer->WaitForProgress(absl::InfiniteDuration()));
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(900)) << "found by the safety timeout, not by a ring";
  EXPECT_THAT(rig->producer->Push(rig->Desc(8)), IsOk());
}

TEST_P(TransportConformanceTest, ASlowConsumerLosesAndTearsNothingOfAHundred) {
  std::jthread producer([&] {
    for (uint32_t i = 0; i < 100; ++i) {
      while (!rig->producer->Push(rig->Desc(i)).ok()) rig->producer->WaitForProgress(absl::Seconds(5));
    }
  });
  std::array<tb_desc, 3> out;
  uint32_t next = 0;
  while (next < 100) {
    ASSERT_TRUE(rig->consumer->Wait(absl::Seconds(30)));
    const size_t count = rig->consumer->Poll(out).value();
    absl::SleepFor(absl::Milliseconds(1));  // slow on purpose: the producer runs out of credits again and again
    for (size_t i = 0; i < count; ++i) ASSERT_TRUE(rig->IsDesc(out[i], next++));
    rig->consumer->Release(next);
  }
  EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
}

// Both ends sleep and wake as often as they can. A lost doorbell costs a second of sleep and is counted.
TEST_P(TransportConformanceTest, NoWakeUpIsLateOverTwoHundredThousandDescriptors) {
  constexpr uint32_t kCount = 200'000;
  const absl::Time start = absl::Now();
  std::jthread producer([&] {
    for (uint32_t i = 0; i < kCount; ++i) {
      while (!rig->producer->Push(rig->Desc(i)).ok()) rig->producer->WaitForProgress(absl::Seconds(5));
    }
  });
  std::array<tb_desc, 4> out;
  uint32_t next = 0;
  while (next < kCount) {
    rig->consumer->Wait(absl::Seconds(5));
    const size_t count = rig->consumer->Poll(out).value();
    for (size_t i = 0; i < count; ++i) ASSERT_TRUE(rig->IsDesc(out[i], next++));
    rig->consumer->Release(next);
  }
  EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
  EXPECT_LT(absl::Now() - start, absl::Seconds(60));
}

// One endpoint, lanes from three producers, as a worker's main loop does it.
class EventLoopConformanceTest : public TransportConformanceTest {};
TEST_P(EventLoopConformanceTest, AnEventLoopOverThreeLanesKeepsTheOrderOfEachAndWakesOnTime) {
  constexpr uint32_t kLanes = 3, kCount = 5'000;
  Member consumer(GetParam());
  std::deque<Member> producers;
  std::vector<SharedRegion> regions;
  std::vector<std::unique_ptr<LaneProducer>> ins;
  std::vector<std::unique_ptr<LaneConsumer>> outs;
  for (uint32_t i = 0; i < kLanes; ++i) {
    producers.emplace_back(GetParam());
    regions.push_back(SharedRegion::Create("test-lane", LaneBytes(16)).value());
    ASSERT_TRUE(FormatLane(regions[i].bytes, 16).ok());
    ins.push_back(producers[i].endpoint->OpenProducer(regions[i].bytes, {.peer = consumer.id, .ring_fd = consumer.eventfd.get()}).value());
    outs.push_back(consumer.endpoint->OpenConsumer(regions[i].bytes, {.peer = producers[i].id, .ring_fd = producers[i].eventfd.get()}).value());
  }
  std::vector<std::jthread> threads;
  for (uint32_t i = 0; i < kLanes; ++i) {
    threads.emplace_back([&, i](std::stop_token stop) {
      for (uint32_t n = 0; n < kCount; ++n) {
        while (!stop.stop_requested() && !ins[i]->Push(TransportRig::DescOf(producers[i].id, consumer.id, n)).ok()) {
          ins[i]->WaitForProgress(absl::Seconds(5));
        }
        if (n % 64 == 0) absl::SleepFor(absl::Microseconds(100));  // lets the loop fall asleep now and then
      }
    });
  }
  std::array<uint32_t, kLanes> next{};
  std::array<tb_desc, 8> out;
  bool timed_out = false;
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (next[0] + next[1] + next[2] < kLanes * kCount) {
    ASSERT_LT(absl::Now(), deadline);
    bool busy = false;
    for (uint32_t i = 0; i < kLanes; ++i) {
      TRIB_ASSERT_OK_AND_ASSIGN(const size_t count, outs[i]->Poll(out));
      for (size_t k = 0; k < count; ++k, ++next[i]) {
        const tb_desc want = TransportRig::DescOf(producers[i].id, consumer.id, next[i]);
        ASSERT_EQ(std::memcmp(&out[k], &want, sizeof(want)), 0) << "lane " << i << " number " << next[i];
      }
      outs[i]->Release(next[i]);
      busy = busy || count > 0;
    }
    EXPECT_FALSE(busy && timed_out) << "slept through a wake-up";
    timed_out = false;
    if (busy) continue;
    bool work = false;
    for (auto& lane : outs) work = lane->Arm() || work;
    if (!work) {
      pollfd entry{consumer.endpoint->wait_fd(), POLLIN, 0};
      timed_out = ::poll(&entry, 1, 1000) == 0;
      if ((entry.revents & POLLIN) != 0) consumer.endpoint->Drain();
    }
    for (auto& lane : outs) lane->Disarm(timed_out);
  }
  for (auto& lane : outs) EXPECT_EQ(lane->late_wakeups(), 0u);
  threads.clear();
  ins.clear();
  outs.clear();
}

// What comes for one lane between its Arm and the sleep must still end the sleep after another lane was armed (or disarmed) meanwhile.
TEST_P(EventLoopConformanceTest, ArmingOneLaneDoesNotSwallowAnothersWakeUp) {
  Member other(GetParam());
  SharedRegion region = SharedRegion::Create("test-lane", LaneBytes(8)).value();
  ASSERT_THAT(FormatLane(region.bytes, 8), IsOk());
  auto other_in = other.endpoint->OpenProducer(region.bytes, {.peer = rig->consumer_member.id, .ring_fd = rig->consumer_member.eventfd.get()}).value();
  auto other_out = rig->consumer_member.endpoint->OpenConsumer(region.bytes, {.peer = other.id, .ring_fd = other.eventfd.get()}).value();
  std::array<tb_desc, 4> out;
  for (uint32_t i = 0; i < 20; ++i) {
    ASSERT_FALSE(rig->consumer->Arm());
    ASSERT_THAT(rig->producer->Push(rig->Desc(i)), IsOk());
    const bool work = other_out->Arm();
    pollfd entry{rig->consumer_member.endpoint->wait_fd(), POLLIN, 0};
    EXPECT_TRUE(work || ::poll(&entry, 1, 500) == 1) << "the loop would sleep through it";
    rig->consumer_member.endpoint->Drain();
    rig->consumer->Disarm(false);
    other_out->Disarm(false);
    ASSERT_EQ(rig->consumer->Poll(out).value(), 1u);
    rig->consumer->Release(i + 1);
  }
  other_in.reset();
  other_out.reset();
}

// Pushes, takes, releases, deaths of either end, pauses of the route, new sockets and replays in random order: what is taken is always the
// next number, starting again at `done` after the consumer's death, and in the end everything has been taken.
TEST_P(TransportConformanceTest, RandomHistoriesLoseAndRepeatNothing) {
  const uint64_t seed = absl::ToUnixMicros(absl::Now());
  std::mt19937 random(static_cast<uint32_t>(seed));
  SCOPED_TRACE(fmt::format("seed {}", static_cast<uint32_t>(seed)));
  const bool kernel = NeedsBpf(GetParam());
  Anchors* const anchors = kernel ? Node::Get().anchors.get() : nullptr;
  std::array<tb_desc, 8> out;
  for (int history = 0; history < 200; ++history) {
    rig = std::make_unique<TransportRig>(GetParam(), 8);
    uint32_t pushed = 0, taken = 0, released = 0;
    const auto take = [&](size_t limit) {
      TRIB_ASSERT_OK_AND_ASSIGN(const size_t count, rig->consumer->Poll(std::span(out).first(limit)));
      for (size_t i = 0; i < count; ++i, ++taken) ASSERT_TRUE(rig->IsDesc(out[i], taken)) << "history " << history << ": expected " << taken << ", got " << out[i].round;
    };
    const auto renew = [&](Member& member) {  // as the daemon does for an offender
      Anchors::Anchor fresh = anchors->Recycle(member.id).value();
      member.epoch = fresh.epoch;
      ASSERT_THAT(member.skmsg().ReplaceSocket(std::move(fresh.worker_end)), IsOk());
    };
    for (int step = 0; step < 200; ++step) {
      switch (random() % (kernel ? 16 : 12)) {
        case 0: case 1: case 2: case 3: case 4:
          if (rig->producer->Push(rig->Desc(pushed)).ok()) ++pushed;
          break;
        case 5: case 6: case 7: take(1 + random() % out.size()); break;
        case 8: case 9:
          released += taken > released ? random() % (taken - released + 1) : 0;
          rig->consumer->Release(released);
          break;
        case 10:
          rig->ReplaceConsumer();
          taken = released;
          break;
        case 11:
          rig->KillProducer();
          rig->StartProducer();
          break;
        case 12: ASSERT_THAT(anchors->Pause(rig->consumer_member.id), IsOk()); break;
        case 13: ASSERT_THAT(anchors->Resume(rig->consumer_member.id), IsOk()); break;
        case 14: renew(random() % 2 == 0 ? rig->consumer_member : rig->producer_member); break;
        case 15: rig->consumer->Replay(); break;
      }
      if (HasFatalFailure()) return;
      if (kernel && step % 16 == 0) anchors->Read(absl::Now());
    }
    rig->consumer->Replay();  // the daemon has seen every dead letter by now
    while (taken < pushed && !HasFatalFailure()) take(out.size());
    if (HasFatalFailure()) return;
    EXPECT_EQ(LaneBacklog(rig->bytes()).value(), pushed - released);
    EXPECT_EQ(rig->consumer->Poll(out).value(), 0u);
  }
}

// ---- the other end lies ----

TEST_P(TransportConformanceTest, AProducerClosesTheLaneWhenDoneLies) {
  std::mt19937 random(1);
  for (int i = 0; i < 50; ++i) {
    rig = std::make_unique<TransportRig>(GetParam(), 8);
    PushAll(0, 3);
    rig->header().done = i == 0 ? 4 : 4 + random() % 0xfffffff0u;
    EXPECT_THAT(rig->producer->Push(rig->Desc(3)), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("lane closed")));
    rig->header().done = 0;  // too late to be honest
    EXPECT_THAT(rig->producer->Push(rig->Desc(3)), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_TRUE(rig->producer->ArmProgress()) << "a closed lane must not be slept on";
  }
}

TEST_P(TransportConformanceTest, AConsumerClosesTheLaneWhenHeadLies) {
  std::array<tb_desc, 16> out;
  for (const uint32_t lie : {9u, 0x80000000u, 0xffffffffu}) {
    rig = std::make_unique<TransportRig>(GetParam(), 8);
    rig->header().head = lie;
    EXPECT_THAT(rig->consumer->Poll(out), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("lane closed")));
    EXPECT_TRUE(rig->consumer->Wait(absl::InfiniteDuration())) << "a lie is something to look at";
  }
}

TEST_P(TransportConformanceTest, AConsumerClosesTheLaneWhenADescriptorNamesAnotherSender) {
  rig->KillConsumer();
  PushAll(0, 2);
  reinterpret_cast<tb_desc*>(rig->bytes().data() + sizeof(tb_lane_header))[1].src += 1;
  rig->StartConsumer();
  std::array<tb_desc, 16> out;
  EXPECT_THAT(rig->consumer->Poll(out), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("lane closed")));
  EXPECT_THAT(rig->consumer->Poll(out), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_P(TransportConformanceTest, RandomBytesInTheSharedLinesNeverCrashAnEndOrDeliverAnotherLanesDescriptor) {
  std::mt19937 random(20261126);
  std::array<tb_desc, 16> out;
  for (int i = 0; i < 300; ++i) {
    rig = std::make_unique<TransportRig>(GetParam(), 8);
    PushAll(0, random() % 8);
    const size_t at = 64 + random() % (rig->bytes().size() - 64);  // beyond the daemon's line, which is read once
    rig->bytes()[at] = static_cast<std::byte>(random());
    const absl::StatusOr<size_t> count = rig->consumer->Poll(out);
    if (count.ok()) {
      for (size_t k = 0; k < *count; ++k) ASSERT_EQ(out[k].src, rig->producer_member.id);
      rig->consumer->Release(rig->consumer->tail());
    }
    rig->producer->Push(rig->Desc(99)).IgnoreError();
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, TransportConformanceTest, ::testing::Values(Way::kRingFutex, Way::kRingEventFd, Way::kSkMsg, Way::kSkMsgInline),
                         ::testing::PrintToStringParamName());
// A futex has no fd to poll: it is for a thread per lane.
INSTANTIATE_TEST_SUITE_P(Transports, EventLoopConformanceTest, ::testing::Values(Way::kRingEventFd, Way::kSkMsg, Way::kSkMsgInline),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace tributary::aggregator
