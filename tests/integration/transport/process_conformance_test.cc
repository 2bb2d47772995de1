// Every transport between processes, of which one is killed: at named places and in the middle of its work.
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/process.h"
#include "tests/integration/transport/transport_rig.h"

namespace tributary::aggregator {
namespace {

UniqueFd PidFd(pid_t pid) { return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

class TransportProcessTest : public ::testing::TestWithParam<Way> {
 protected:
  static constexpr uint32_t kCapacity = 16;
  void SetUp() override {
    if (NeedsBpf(GetParam())) TRIB_REQUIRE_OR_SKIP("bpf", BpfMissing());
    rig = std::make_unique<TransportRig>(GetParam(), kCapacity);
    rig->producer.reset();
    rig->consumer.reset();
    self_pidfd = PidFd(::getpid());
  }
  // Hands the member's end over to a child process. In this process it is over.
  SpawnOptions Hand(Member& member, Member& other, std::vector<std::string> args) {
    SpawnOptions spawn;
    spawn.program = TRANSPORT_HELPER;
    args.insert(args.begin() + 1, {NameOf(GetParam()), fmt::format("{}", rig->region.bytes.size()), fmt::format("{}", member.id), fmt::format("{}", other.id)});
    spawn.args = std::move(args);
    spawn.env = {{"TEST_PARENT", fmt::format("{}", ::getpid())}};
    spawn.fds = {{rig->region.fd.get(), 9}, {self_pidfd.get(), 12}};
    if (GetParam() == Way::kRingEventFd) {
      spawn.fds.push_back({member.eventfd.get(), 10});
      spawn.fds.push_back({other.eventfd.get(), 11});
    } else if (NeedsBpf(GetParam())) {
      member.Die();
      handed = member.NewAnchor();  // closed by the next Hand or the end: the child's copy alone keeps the entry alive
      spawn.fds.push_back({handed.get(), 10});
    }
    return spawn;
  }
  ChildProcess Spawn(const SpawnOptions& spawn) {
    ChildProcess child = ChildProcess::Spawn(spawn).value();
    handed.Reset();
    return child;
  }
  ChildProcess StartProducer(uint32_t count, std::vector<std::pair<std::string, std::string>> env = {}) {
    SpawnOptions spawn = Hand(rig->producer_member, rig->consumer_member, {"produce", fmt::format("{}", count)});
    for (auto& entry : env) spawn.env.push_back(entry);
    return Spawn(spawn);
  }
  ChildProcess StartConsumer(int out_fd, std::vector<std::pair<std::string, std::string>> env = {}) {
    SpawnOptions spawn = Hand(rig->consumer_member, rig->producer_member, {"consume"});
    spawn.fds.push_back({out_fd, 1});
    for (auto& entry : env) spawn.env.push_back(entry);
    return Spawn(spawn);
  }
  // Takes and releases until `next` reaches `end`; every descriptor must be the next one, whole.
  void Consume(uint32_t end) {
    std::array<tb_desc, 5> out;
    while (next < end) {
      ASSERT_TRUE(rig->consumer->Wait(absl::Seconds(30))) << "nothing after " << next;
      TRIB_ASSERT_OK_AND_ASSIGN(const size_t count, rig->consumer->Poll(out));
      for (size_t i = 0; i < count; ++i, ++next) ASSERT_TRUE(rig->IsDesc(out[i], next)) << "expected number " << next << ", got " << out[i].round;
      rig->consumer->Release(next);
    }
  }
  std::unique_ptr<TransportRig> rig;
  UniqueFd self_pidfd, handed;
  uint32_t next = 0;
};

TEST_P(TransportProcessTest, DescriptorsOfAnotherProcessArriveInOrderWithoutALateWakeUp) {
  rig->OpenConsumer();
  ChildProcess producer = StartProducer(20'000);
  Consume(20'000);
  EXPECT_EQ(producer.Wait(absl::Seconds(10)).value(), 0);
  EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
}

TEST_P(TransportProcessTest, AConsumerLearnsOfItsProducersDeathAndStillGetsWhatItPushed) {
  ChildProcess producer = StartProducer(3, {});
  rig->producer_pidfd = producer.pidfd();
  rig->OpenConsumer();
  Consume(3);
  const absl::Time start = absl::Now();
  EXPECT_FALSE(rig->consumer->Wait(absl::InfiniteDuration()));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(rig->consumer->PeerEnded());
  EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
}

TEST_P(TransportProcessTest, AProducerOutOfCreditLearnsOfItsConsumersDeath) {
  SpawnOptions spawn = Hand(rig->consumer_member, rig->producer_member, {"sleep"});
  ChildProcess consumer = Spawn(spawn);
  rig->consumer_pidfd = consumer.pidfd();
  rig->OpenProducer();
  EXPECT_FALSE(rig->producer->PeerEnded());
  // The sleeper wakes at the first descriptor and ends without taking anything.
  for (uint32_t i = 0; i < kCapacity; ++i) ASSERT_TRUE(rig->producer->Push(rig->Desc(i)).ok());
  EXPECT_FALSE(rig->producer->WaitForProgress(absl::InfiniteDuration()));
  EXPECT_TRUE(rig->producer->PeerEnded());
}

TEST_P(TransportProcessTest, AConsumerKilledWhileItSleepsIsReplacedAndMissesNothing) {
  rig->OpenProducer();
  for (uint32_t generation = 0; generation < 5; ++generation) {
    ChildProcess sleeper = Spawn(Hand(rig->consumer_member, rig->producer_member, {"sleep"}));
    absl::SleepFor(absl::Milliseconds(20));
    sleeper.Signal(SIGKILL);
    ASSERT_TRUE(sleeper.Wait(absl::Seconds(10)).ok());
    rig->consumer_member.Die();
    ASSERT_TRUE(rig->producer->Push(rig->Desc(generation)).ok());  // its doorbell or record finds nobody
  }
  rig->StartConsumer();
  Consume(5);
  ASSERT_TRUE(rig->producer->Push(rig->Desc(5)).ok());
  Consume(6);
}

#ifdef TRIBUTARY_CRASH_POINTS
TEST_P(TransportProcessTest, AProducerKilledAroundAPushHasPushedItAndItsReplacementGoesOn) {
  uint32_t pushed = 0;
  for (const char* point : {"lane_after_push", "lane_before_ring", "skmsg_before_record"}) {
    if (point == std::string("lane_before_ring") && GetParam() == Way::kSkMsgInline) continue;      // rings nobody
    if (point == std::string("skmsg_before_record") && GetParam() != Way::kSkMsgInline) continue;
    for (int generation = 1; generation <= 3; ++generation) {
      rig->consumer.reset();
      ChildProcess producer = StartProducer(100, {{"TRIBUTARY_CRASH", fmt::format("{}:{}", point, point == std::string("lane_before_ring") ? 1 : 7)}});
      rig->producer_pidfd = producer.pidfd();
      rig->OpenConsumer();
      // Asleep while the producer dies at its worst moment; it never rings for its last descriptor.
      while (!rig->consumer->PeerEnded()) {
        rig->consumer->Wait(absl::Seconds(5));
        std::array<tb_desc, 5> out;
        TRIB_ASSERT_OK_AND_ASSIGN(const size_t count, rig->consumer->Poll(out));
        for (size_t i = 0; i < count; ++i, ++next) ASSERT_TRUE(rig->IsDesc(out[i], next)) << point;
        rig->consumer->Release(next);
      }
      TRIB_ASSERT_OK_AND_ASSIGN(const int status, producer.Wait(absl::Seconds(10)));
      ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << point << ": it must have been killed there, status " << status;
      pushed = rig->header().head;
      EXPECT_GT(pushed, 0u);
      EXPECT_EQ(rig->consumer->late_wakeups(), 0u);
    }
  }
  rig->consumer.reset();
  rig->producer_pidfd = -1;
  rig->OpenConsumer();
  ChildProcess last = StartProducer(50);
  Consume(pushed + 50);
  EXPECT_EQ(last.Wait(absl::Seconds(10)).value(), 0);
  EXPECT_EQ(next, rig->header().head);
}

TEST_P(TransportProcessTest, AConsumerKilledAroundItsReleaseIsReplacedAndNothingBeforeDoneComesAgain) {
  constexpr uint32_t kCount = 300;
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  const UniqueFd numbers(pipe_fds[0]);
  UniqueFd numbers_in(pipe_fds[1]);
  ChildProcess producer = StartProducer(kCount);
  std::vector<std::string> plans;
  for (const char* point : {"lane_after_poll:1", "lane_after_release:1", "lane_after_poll:3", "lane_after_release:4", "lane_after_poll:2"}) plans.push_back(point);
  uint32_t generations = 0, released = 0;
  std::vector<uint32_t> seen;
  for (const std::string& plan : plans) {
    ChildProcess consumer = StartConsumer(numbers_in.get(), {{"TRIBUTARY_CRASH", plan}});
    TRIB_ASSERT_OK_AND_ASSIGN(const int status, consumer.Wait(absl::Seconds(20)));
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << plan << " status " << status;
    const uint32_t done = rig->header().done;
    EXPECT_GE(done, released);
    released = done;
    ++generations;
  }
  ChildProcess consumer = StartConsumer(numbers_in.get());
  numbers_in.Reset();
  EXPECT_EQ(producer.Wait(absl::Seconds(20)).value(), 0);
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (std::atomic_ref<uint32_t>(rig->header().done).load() != kCount && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
  ASSERT_EQ(rig->header().done, kCount);
  EXPECT_TRUE(consumer.Running()) << "it ended by itself: a late wake-up or a torn descriptor";
  consumer.Signal(SIGKILL);
  ASSERT_TRUE(consumer.Wait(absl::Seconds(10)).ok());
  uint32_t number = 0;
  while (::read(numbers.get(), &number, sizeof(number)) == static_cast<ssize_t>(sizeof(number))) seen.push_back(number);
  // In order; after a death it may step back by what was taken and not released, never further, and it skips nothing.
  uint32_t expected = 0, steps_back = 0;
  for (const uint32_t value : seen) {
    if (value != expected) {
      ASSERT_LT(value, expected);
      ASSERT_LE(expected - value, 5u) << "more than one batch was unreleased";
      ++steps_back;
    }
    expected = value + 1;
  }
  EXPECT_EQ(expected, kCount);
  EXPECT_LE(steps_back, generations);
}
#endif

INSTANTIATE_TEST_SUITE_P(Transports, TransportProcessTest, ::testing::Values(Way::kRingFutex, Way::kRingEventFd, Way::kSkMsg, Way::kSkMsgInline),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace tributary::aggregator
