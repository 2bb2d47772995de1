#include "aggregator/worker/fold_timing.h"

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::StatusIs;

constexpr absl::Duration kAge = absl::Milliseconds(50);
const absl::Time kNow = absl::FromUnixSeconds(1000);

FoldDecision Decide(FoldTimingKind kind, uint64_t queued, std::optional<uint64_t> missing, absl::Duration waited = absl::ZeroDuration()) {
  FoldQueue queue;
  queue.now = kNow;
  queue.queued = queued;
  queue.goal_known = missing.has_value();
  queue.missing = missing.value_or(0);
  if (queued > 0) queue.oldest = kNow - waited;
  return MakeFoldTiming(kind, 4, kAge).value()->Decide(queue);
}

TEST(FoldTimingTest, EagerFoldsEachArrival) {
  EXPECT_TRUE(Decide(FoldTimingKind::kEager, 1, 99).fold);
  EXPECT_TRUE(Decide(FoldTimingKind::kEager, 1, std::nullopt).fold);
  EXPECT_FALSE(Decide(FoldTimingKind::kEager, 0, 0).fold);
}

TEST(FoldTimingTest, LazyWaitsForTheLastOneHoweverLong) {
  EXPECT_FALSE(Decide(FoldTimingKind::kLazy, 15, 1, absl::Hours(1)).fold);
  EXPECT_TRUE(Decide(FoldTimingKind::kLazy, 15, 0).fold);
  EXPECT_FALSE(Decide(FoldTimingKind::kLazy, 15, std::nullopt).fold) << "without a goal nothing is the last one";
  EXPECT_EQ(Decide(FoldTimingKind::kLazy, 15, 1).look_again, absl::InfiniteFuture());
}

TEST(FoldTimingTest, ABatchFoldsWhenFullCompleteOrOld) {
  EXPECT_FALSE(Decide(FoldTimingKind::kBatch, 3, 10).fold);
  EXPECT_TRUE(Decide(FoldTimingKind::kBatch, 4, 10).fold);
  EXPECT_TRUE(Decide(FoldTimingKind::kBatch, 1, 0).fold);
  EXPECT_FALSE(Decide(FoldTimingKind::kBatch, 3, 10, kAge - absl::Nanoseconds(1)).fold);
  EXPECT_TRUE(Decide(FoldTimingKind::kBatch, 3, 10, kAge).fold);
  EXPECT_EQ(Decide(FoldTimingKind::kBatch, 3, 10, absl::Milliseconds(20)).look_again, kNow + absl::Milliseconds(30));
  EXPECT_FALSE(Decide(FoldTimingKind::kBatch, 0, 0).fold);
}

TEST(FoldTimingTest, NamesWhatDoesNotExist) {
  EXPECT_THAT(MakeFoldTiming(FoldTimingKind::kBatch, 0, kAge), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least 1")));
  EXPECT_THAT(MakeFoldTiming(static_cast<FoldTimingKind>(9), 1, kAge), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kind 9")));
}

}  // namespace
}  // namespace tributary::aggregator
