// A lane whose producer is another process, also one that is killed in the middle.
#include <absl/time/clock.h>
#include <signal.h>
#include <sys/wait.h>

#include <array>

#include "aggregator/store/object_pool.h"
#include "aggregator/transport/transport.h"
#include "common/process.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

constexpr uint32_t kCapacity = 16;

class LaneProcessTest : public ::testing::Test {
 protected:
  ChildProcess StartProducer(int count, std::vector<std::pair<std::string, std::string>> env = {}) {
    SpawnOptions spawn;
    spawn.program = HELPER_PROGRAM;
    spawn.args = {"push", "9", fmt::format("{}", region.bytes.size()), fmt::format("{}", count)};
    spawn.env = std::move(env);
    spawn.fds = {{region.fd.get(), 9}};
    return ChildProcess::Spawn(spawn).value();
  }
  // Takes and releases until `next` reaches `end`; every descriptor must be the next one, whole.
  void Consume(uint32_t end) {
    std::array<tb_desc, 5> out;
    while (next < end) {
      ASSERT_TRUE(consumer->Wait(absl::Seconds(30)));
      const size_t count = consumer->Poll(out).value();
      for (size_t i = 0; i < count; ++i, ++next) {
        ASSERT_EQ(out[i].dst, next);
        ASSERT_EQ(out[i].src, ~next);
        ASSERT_EQ(out[i].key_lo, next);
      }
      consumer->Release(next);
    }
  }
  SharedRegion region = SharedRegion::Create("test-lane", LaneBytes(kCapacity)).value();
  std::unique_ptr<LaneConsumer> consumer;
  uint32_t next = 0;
  void SetUp() override {
    ASSERT_TRUE(FormatLane(region.bytes, kCapacity).ok());
    consumer = AttachRingConsumer(region.bytes).value();
  }
};

TEST_F(LaneProcessTest, DescriptorsOfAnotherProcessArriveInOrderWithoutALateWakeUp) {
  ChildProcess producer = StartProducer(20'000);
  Consume(20'000);
  EXPECT_EQ(producer.Wait(absl::Seconds(10)).value(), 0);
  EXPECT_EQ(consumer->late_wakeups(), 0u);
}

#ifdef TRIBUTARY_CRASH_POINTS
TEST_F(LaneProcessTest, AProducerKilledAfterAPushHasPushedItAndItsReplacementGoesOn) {
  for (uint32_t generation = 1; generation <= 5; ++generation) {
    ChildProcess producer = StartProducer(100, {{"TRIBUTARY_CRASH", "lane_after_push:7"}});
    TRIB_ASSERT_OK_AND_ASSIGN(const int status, producer.Wait(absl::Seconds(10)));
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    Consume(generation * 7);
    std::array<tb_desc, 1> out;
    EXPECT_EQ(consumer->Poll(out).value(), 0u);
  }
}
#endif

}  // namespace
}  // namespace tributary::aggregator
