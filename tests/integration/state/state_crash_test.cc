// kill -9 of a writing process, at every crash point of the store and at random moments, again and again on one store.
#include <absl/strings/numbers.h>
#include <absl/time/clock.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <random>

#include "common/file.h"
#include "common/process.h"
#include "tests/integration/state/state_fixture.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::tributary::testing::IsOk;

class StateCrashTest : public ::testing::Test {
 protected:
  absl::StatusOr<ChildProcess> Start(size_t bytes, const std::string& crash) {
    SpawnOptions options;
    options.program = ExecutableDir() / "state_writer";
    options.args = {dir_.store(), std::to_string(bytes), Acknowledged()};
    if (!crash.empty()) options.env.emplace_back("TRIBUTARY_CRASH", crash);
    options.stderr_file = dir_.path() + "/stderr";
    return ChildProcess::Spawn(options);
  }
  std::string Acknowledged() const { return dir_.path() + "/acknowledged"; }
  std::string Stderr() const { return ReadFile(dir_.path() + "/stderr").value_or("no stderr"); }

  std::optional<uint64_t> LastAcknowledged() const {
    std::ifstream in(Acknowledged());
    std::optional<uint64_t> last;
    for (uint64_t version = 0; in >> version;) last = version;
    return last;
  }

  // Everything that must hold after any crash. `bytes` per version.
  void CheckStore(size_t bytes) {
    const absl::Time begin = absl::Now();
    auto opened = StateStore::Open({.dir = dir_.store()});
    ASSERT_THAT(opened, IsOk());
    const absl::Duration took = absl::Now() - begin;
    EXPECT_LT(took, absl::Seconds(5)) << "recovery";
    const auto& store = **opened;
    EXPECT_GT(store.epoch(), last_epoch_);
    last_epoch_ = store.epoch();
    TRIB_ASSERT_OK_AND_ASSIGN(const auto findings, store.Verify(nullptr));
    EXPECT_THAT(findings, ::testing::IsEmpty());

    const auto acknowledged = LastAcknowledged();
    const auto latest = store.LatestVersion("crash");
    if (!latest.ok()) {
      EXPECT_TRUE(absl::IsNotFound(latest.status())) << latest.status();
      EXPECT_FALSE(acknowledged.has_value()) << "version " << *acknowledged << " was acknowledged and is lost";
    } else {
      if (acknowledged) {
        EXPECT_GE(*latest, *acknowledged) << "an acknowledged version is lost";
      }
      TRIB_ASSERT_OK_AND_ASSIGN(const auto versions, store.ListVersions("crash"));
      ASSERT_EQ(versions.size(), *latest + 1);
      TRIB_ASSERT_OK_AND_ASSIGN(const auto job, store.GetJob("crash"));
      EXPECT_EQ(job.updates_committed(), *latest * 2);
      std::vector<std::byte> tensors(bytes);
      EXPECT_THAT(store.ReadTensors("crash", *latest, tensors, true), IsOk());
      EXPECT_EQ(tensors, TestTensors(*latest, bytes));
      TRIB_ASSERT_OK_AND_ASSIGN(const auto state, store.ReadStrategyState("crash", *latest));
      ASSERT_EQ(state.size(), 1u);
      EXPECT_EQ(state[0].values, std::vector<double>(bytes / 8, static_cast<double>(*latest) + 0.5));
      TRIB_ASSERT_OK_AND_ASSIGN(const auto events, store.ListEvents("crash", 1));
      ASSERT_EQ(events.size(), 1u);
      EXPECT_EQ(events[0].text(), "version " + std::to_string(*latest));
      for (uint64_t i = 0; i < 2; ++i) {
        EXPECT_THAT(store.GetUpdate("crash", TestUpdate(*latest, i)), IsOk());
        EXPECT_TRUE(absl::IsNotFound(store.GetUpdate("crash", TestUpdate(*latest + 1, i)).status())) << "a half-visible version";
      }
    }
    const auto partial = store.GetPartial("crash");
    if (!partial.ok()) {
      EXPECT_TRUE(absl::IsNotFound(partial.status())) << partial.status();
      return;
    }
    const uint64_t open_version = latest.ok() ? *latest + 1 : 0;
    EXPECT_EQ(partial->row.version(), open_version) << "a partial of a committed version";
    const int half = partial->row.contributors_size() - 1;
    ASSERT_TRUE(half == 0 || half == 1);
    EXPECT_EQ(partial->sums, TestTensors(open_version * 2 + static_cast<uint64_t>(half) + 1'000'000, bytes * 2));
  }

  TempDir dir_;
  uint64_t last_epoch_ = 0;
};

constexpr size_t kInline = 8 << 10;
constexpr size_t kBulkBytes = (5 << 20) + 8;   // two shards, sums of three

#ifdef TRIBUTARY_CRASH_POINTS
TEST_F(StateCrashTest, NothingIsLostOrHalfVisibleAfterAKillAtAnyCrashPoint) {
  for (const size_t bytes : {kInline, kBulkBytes}) {
    std::filesystem::remove_all(dir_.store());
    std::filesystem::remove(Acknowledged());
    last_epoch_ = 0;
    for (const char* point : {"commit_after_shards", "commit_before_sync", "commit_after_sync", "journal_before_sync", "journal_after_sync"}) {
      for (int passage = 1; passage <= 3; ++passage) {
        const std::string crash = std::string(point) + ":" + std::to_string(passage);
        SCOPED_TRACE(crash + " with " + std::to_string(bytes) + " bytes");
        TRIB_ASSERT_OK_AND_ASSIGN(auto child, Start(bytes, crash));
        TRIB_ASSERT_OK_AND_ASSIGN(const int status, child.Wait(absl::Seconds(60)));
        ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << Stderr();
        CheckStore(bytes);
        if (HasFatalFailure()) return;
      }
    }
  }
}
#endif

// TRIBUTARY_STATE_KILLS=N for more than the usual 24; the seed is printed.
TEST_F(StateCrashTest, NothingIsLostOrHalfVisibleAfterKillsAtRandomTimes) {
  int kills = 24;
  if (const char* text = std::getenv("TRIBUTARY_STATE_KILLS"); text != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &kills));
  }
  uint64_t seed = std::random_device{}();
  if (const char* text = std::getenv("TRIBUTARY_SEED"); text != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &seed));
  }
  SCOPED_TRACE("TRIBUTARY_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (const size_t bytes : {kInline, kBulkBytes}) {
    std::filesystem::remove_all(dir_.store());
    std::filesystem::remove(Acknowledged());
    last_epoch_ = 0;
    for (int kill = 0; kill < kills / 2; ++kill) {
      SCOPED_TRACE("kill " + std::to_string(kill) + " with " + std::to_string(bytes) + " bytes");
      TRIB_ASSERT_OK_AND_ASSIGN(auto child, Start(bytes, ""));
      // Every other time from a commit on, so that the times fall into all parts of the cycle however slow the disk is.
      const auto before = LastAcknowledged();
      const absl::Time limit = absl::Now() + absl::Seconds(60);
      while (kill % 2 == 1 && LastAcknowledged() == before && absl::Now() < limit) {
        ASSERT_TRUE(absl::IsDeadlineExceeded(child.Wait(absl::Milliseconds(2)).status())) << "the writer ended by itself: " << Stderr();
      }
      const auto early = child.Wait(absl::Milliseconds(1 + static_cast<int64_t>(random() % (bytes == kInline ? 100 : 400))));
      ASSERT_TRUE(absl::IsDeadlineExceeded(early.status())) << "the writer ended by itself: " << Stderr();
      child.Signal(SIGKILL);
      TRIB_ASSERT_OK_AND_ASSIGN(const int status, child.Wait(absl::Seconds(60)));
      ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
      CheckStore(bytes);
      if (HasFatalFailure()) return;
    }
    EXPECT_TRUE(LastAcknowledged().has_value()) << "no commit at all was made: the test proves nothing";
  }
}

}  // namespace
}  // namespace tributary::aggregator
