#include "aggregator/coordinator/worker_watchdog.h"

#include <gtest/gtest.h>

namespace tributary::aggregator {
namespace {

using Verdict = WorkerWatchdog::Verdict;

class WorkerWatchdogTest : public ::testing::Test {
 protected:
  // Looks every second for `seconds`; the first verdict that is not kFine, or kFine.
  Verdict Pass(int seconds, bool waiting = true) {
    for (int i = 0; i < seconds; ++i) {
      now_ += absl::Seconds(1);
      if (const Verdict verdict = watchdog_.Look(0, {stamp_, waiting}, now_); verdict != Verdict::kFine) return verdict;
    }
    return Verdict::kFine;
  }

  WorkerWatchdog watchdog_{absl::Seconds(10)};
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  uint64_t stamp_ = 1;
};

TEST_F(WorkerWatchdogTest, AsksAfterHalfOfItsPatienceAndGivesUpAfterTheRest) {
  EXPECT_EQ(Pass(5), Verdict::kFine);
  EXPECT_EQ(Pass(1), Verdict::kAsk);
  EXPECT_EQ(Pass(4), Verdict::kFine);
  EXPECT_EQ(Pass(1), Verdict::kHung);
  EXPECT_EQ(Pass(100), Verdict::kFine) << "once is enough";
}

TEST_F(WorkerWatchdogTest, OneThatAnswersMayWaitForEver) {
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(Pass(6), Verdict::kAsk) << i;
    watchdog_.Answered(0);
  }
}

TEST_F(WorkerWatchdogTest, OneThatGetsAnythingDoneNeedNotAnswer) {
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(Pass(6), Verdict::kAsk) << i;
    ASSERT_EQ(Pass(4), Verdict::kFine) << i;
    ++stamp_;  // a block of a large fold
    ASSERT_EQ(Pass(1), Verdict::kFine) << i;
    watchdog_.Forget(0);
  }
}

TEST_F(WorkerWatchdogTest, IdleWorkersAreLeftAlone) {
  EXPECT_EQ(Pass(1000, /*waiting=*/false), Verdict::kFine);
  EXPECT_EQ(Pass(5), Verdict::kFine) << "what was before the work does not count";
}

TEST_F(WorkerWatchdogTest, ANewProcessBeginsAnew) {
  ASSERT_EQ(Pass(6), Verdict::kAsk);
  watchdog_.Forget(0);
  EXPECT_EQ(Pass(5), Verdict::kFine);
  EXPECT_EQ(Pass(1), Verdict::kAsk);
}

TEST_F(WorkerWatchdogTest, TimeInWhichNobodyLookedCountsLittle) {
  EXPECT_EQ(Pass(1), Verdict::kFine);
  now_ += absl::Hours(5);  // the daemon was stopped
  EXPECT_EQ(Pass(1), Verdict::kFine);
  now_ -= absl::Hours(9);  // whatever the clock does
  EXPECT_EQ(Pass(1), Verdict::kFine);
}

TEST_F(WorkerWatchdogTest, WorkersAreJudgedOneByOne) {
  for (int i = 0; i < 11; ++i) {
    now_ += absl::Seconds(1);
    watchdog_.Look(0, {stamp_, true}, now_);
    ASSERT_EQ(watchdog_.Look(1, {static_cast<uint64_t>(i), true}, now_), Verdict::kFine);
  }
}

}  // namespace
}  // namespace tributary::aggregator
