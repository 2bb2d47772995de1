#include "aggregator/core/planners/timing.h"

#include <gmock/gmock.h>

#include <random>

namespace tributary::aggregator {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);
absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }
const TimingDecision kWaitForAnArrival{};
TimingDecision Fold(int64_t n) { return {.fold = n}; }
TimingDecision WaitUntil(double seconds) { return {.wait_until = At(seconds)}; }

TimingDecision Decide(const TimingSpec& spec, const TimingInput& input) { return MakeTimingPolicy(spec)->Decide(input); }

constexpr TimingKind kAll[] = {TimingKind::kEager, TimingKind::kLazy, TimingKind::kBatch, TimingKind::kJit};

TEST(TimingTest, NobodyFoldsNothing) {
  for (const TimingKind kind : kAll) {
    EXPECT_EQ(Decide({.kind = kind}, {.now = At(1), .goal = 4}).fold, 0) << TimingKindName(kind);
    EXPECT_EQ(Decide({.kind = kind}, {.now = At(1), .folded = 4, .goal = 4}).fold, 0) << TimingKindName(kind);
  }
}

TEST(TimingTest, EverybodyFoldsWhenAllAreThere) {
  for (const TimingKind kind : kAll) {
    const TimingInput input{.now = At(1), .queued = 2, .folded = 2, .goal = 4, .oldest = At(1), .predicted_last = At(50)};
    EXPECT_EQ(Decide({.kind = kind}, input), Fold(2)) << TimingKindName(kind);
  }
}

TEST(TimingTest, EverybodyFoldsWhatThereIsAfterTheDeadline) {
  for (const TimingKind kind : kAll) {
    const TimingInput input{.now = At(10), .queued = 1, .goal = 9, .oldest = At(10), .deadline = At(10), .predicted_last = At(50)};
    EXPECT_EQ(Decide({.kind = kind}, input), Fold(1)) << TimingKindName(kind);
  }
}

TEST(TimingTest, EagerFoldsEachArrival) { EXPECT_EQ(Decide({.kind = TimingKind::kEager}, {.now = At(1), .queued = 1, .goal = 100}), Fold(1)); }

TEST(TimingTest, LazyWaitsForTheGoalOrTheDeadline) {
  EXPECT_EQ(Decide({.kind = TimingKind::kLazy}, {.now = At(1), .queued = 9, .goal = 10}), kWaitForAnArrival);
  EXPECT_EQ(Decide({.kind = TimingKind::kLazy}, {.now = At(1), .queued = 9, .goal = 10, .deadline = At(7)}), WaitUntil(7));
}

TEST(TimingTest, BatchWaitsForItsSizeOrItsAge) {
  const TimingSpec spec{.kind = TimingKind::kBatch, .batch = 4, .age = absl::Seconds(2)};
  EXPECT_EQ(Decide(spec, {.now = At(1), .queued = 3, .goal = 10, .oldest = At(0.5)}), WaitUntil(2.5));
  EXPECT_EQ(Decide(spec, {.now = At(2.5), .queued = 3, .goal = 10, .oldest = At(0.5)}), Fold(3));
  EXPECT_EQ(Decide(spec, {.now = At(1), .queued = 4, .goal = 10, .oldest = At(0.5)}), Fold(4));
  EXPECT_EQ(Decide(spec, {.now = At(1), .queued = 7, .goal = 10, .oldest = At(0.5)}), Fold(7));
  EXPECT_EQ(Decide(spec, {.now = At(1), .queued = 3, .goal = 10, .oldest = At(0.5), .deadline = At(1.5)}), WaitUntil(1.5));
}

TEST(TimingTest, JitBeginsSoThatItEndsWithTheLastArrival) {
  const TimingSpec spec{.kind = TimingKind::kJit, .slack = absl::Seconds(0.5)};
  TimingInput input{.now = At(1), .queued = 5, .goal = 10, .oldest = At(0), .predicted_last = At(20),
                    .update_time = absl::Seconds(1), .merge_time = absl::Seconds(2), .depth = 2};
  EXPECT_EQ(Decide(spec, input), WaitUntil(20 - 5 * 1 - 2 * 2 - 0.5));
  input.now = At(10.5);
  EXPECT_EQ(Decide(spec, input), Fold(5));
}

TEST(TimingTest, JitTakesTheDeadlineWhereItComesFirstAndFoldsAtOnceWhereItKnowsNothing) {
  const TimingSpec spec{.kind = TimingKind::kJit, .slack = absl::ZeroDuration()};
  TimingInput input{.now = At(1), .queued = 2, .goal = 10, .oldest = At(0), .deadline = At(8), .predicted_last = At(20), .update_time = absl::Seconds(1)};
  EXPECT_EQ(Decide(spec, input), WaitUntil(6));
  input.predicted_last.reset();
  EXPECT_EQ(Decide(spec, input), WaitUntil(6));
  input.deadline = absl::InfiniteFuture();
  EXPECT_EQ(Decide(spec, input), Fold(2));
}

// Whoever asks again at the time that was named gets an answer: no decision waits for a time that has passed.
TEST(TimingTest, ANamedTimeIsAlwaysInTheFuture) {
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    std::mt19937_64 random(seed);
    const auto number = [&](int64_t bound) { return static_cast<int64_t>(random() % static_cast<uint64_t>(bound)); };
    TimingInput input{.now = At(static_cast<double>(number(100))), .queued = number(6), .folded = number(6), .goal = 1 + number(12)};
    if (input.queued > 0) input.oldest = input.now - absl::Seconds(number(5));
    if (number(2) == 0) input.deadline = At(static_cast<double>(number(200)));
    if (number(2) == 0) input.predicted_last = At(static_cast<double>(number(200)));
    input.update_time = absl::Seconds(number(3));
    for (const TimingKind kind : kAll) {
      const TimingSpec spec{.kind = kind, .batch = 1 + number(6), .age = absl::Seconds(1 + number(4))};
      const TimingDecision decision = Decide(spec, input);
      EXPECT_TRUE(decision.fold == 0 || decision.fold == input.queued) << TimingKindName(kind) << ", seed " << seed;
      if (decision.fold > 0 || input.queued == 0) continue;
      EXPECT_GT(decision.wait_until, input.now) << TimingKindName(kind) << ", seed " << seed;
      if (decision.wait_until == absl::InfiniteFuture()) continue;
      TimingInput later = input;
      later.now = decision.wait_until;
      EXPECT_EQ(Decide(spec, later).fold, input.queued) << TimingKindName(kind) << ", seed " << seed;
    }
  }
}

TEST(LastArrivalTest, KnowsNothingBeforeTwoArrivals) {
  LastArrivalEstimator last;
  EXPECT_EQ(last.Predict(At(0)), std::nullopt);
  last.OnRoundOpened(At(0), 5);
  last.OnArrival(At(1));
  EXPECT_EQ(last.Predict(At(1)), std::nullopt);
}

TEST(LastArrivalTest, AFirstRoundGoesOnAtItsPace) {
  LastArrivalEstimator last;
  last.OnRoundOpened(At(0), 5);
  last.OnArrival(At(10));
  last.OnArrival(At(12));
  EXPECT_EQ(last.Predict(At(12)), At(18));
  EXPECT_EQ(last.Predict(At(30)), At(30));  // late, but not in the past
}

TEST(LastArrivalTest, LaterRoundsAreExpectedLikeEarlierOnes) {
  LastArrivalEstimator last(0.5);
  for (int round = 0; round < 2; ++round) {
    const double opened = 100.0 * round;
    last.OnRoundOpened(At(opened), 2);
    last.OnArrival(At(opened + 1));
    last.OnArrival(At(opened + 20 + 10 * round));
  }
  last.OnRoundOpened(At(200), 2);
  EXPECT_EQ(last.Predict(At(200)), At(225));
  EXPECT_EQ(last.Predict(At(226)), At(226));  // later than ever: any moment now
  last.OnArrival(At(226));
  last.OnArrival(At(240));
  EXPECT_EQ(last.Predict(At(250)), At(240));  // all are there
}

TEST(LastArrivalTest, AnIncompleteRoundTeachesNothing) {
  LastArrivalEstimator last(1.0);
  last.OnRoundOpened(At(0), 2);
  last.OnArrival(At(1));
  last.OnArrival(At(9));
  last.OnRoundOpened(At(100), 3);
  last.OnArrival(At(101));
  last.OnRoundOpened(At(200), 2);
  EXPECT_EQ(last.Predict(At(200)), At(209));
}

}  // namespace
}  // namespace tributary::aggregator
