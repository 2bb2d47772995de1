#include "aggregator/core/planners/hierarchy.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

TEST(HierarchyTest, DefaultsDependOnTheTrait) {
  TRIB_ASSERT_OK_AND_ASSIGN(const Hierarchy mean, ResolveHierarchy({}, "fedavg", StrategyTrait::kMergeable));
  EXPECT_EQ(mean.shape, HierarchyShape::kShard);
  EXPECT_EQ(mean.timing.kind, TimingKind::kBatch);
  EXPECT_EQ(mean.timing.batch, 4);
  EXPECT_EQ(mean.placement, FindPlanner("bestfit"));
  EXPECT_TRUE(mean.reuse);
  TRIB_ASSERT_OK_AND_ASSIGN(const Hierarchy median, ResolveHierarchy({}, "median", StrategyTrait::kNeedsAll));
  EXPECT_EQ(median.shape, HierarchyShape::kFlat);
  EXPECT_EQ(median.timing.kind, TimingKind::kLazy);
}

TEST(HierarchyTest, AMergeableStrategyTakesEveryCombination) {
  for (const HierarchyShape shape : {HierarchyShape::kFlat, HierarchyShape::kShard, HierarchyShape::kTree}) {
    for (const TimingKind timing : {TimingKind::kEager, TimingKind::kLazy, TimingKind::kBatch, TimingKind::kJit}) {
      for (const PlannerEntry& placement : Planners()) {
        for (const PlanKind plan : {PlanKind::kEwma, PlanKind::kStatic}) {
          for (const bool reuse : {true, false}) {
            const HierarchySpec spec{.shape = shape, .timing = TimingSpec{.kind = timing}, .placement = std::string(placement.name),
                                     .plan = {.kind = plan, .leaves = plan == PlanKind::kStatic ? 3 : 0}, .reuse = reuse};
            TRIB_ASSERT_OK_AND_ASSIGN(const Hierarchy hierarchy, ResolveHierarchy(spec, "fedavg", StrategyTrait::kMergeable));
            EXPECT_EQ(hierarchy.shape, shape);
            EXPECT_EQ(hierarchy.timing.kind, timing);
            EXPECT_EQ(hierarchy.placement->name, placement.name);
            EXPECT_EQ(hierarchy.plan, spec.plan);
            EXPECT_EQ(hierarchy.reuse, reuse);
          }
        }
      }
    }
  }
}

TEST(HierarchyTest, AStrategyThatNeedsAllIsRefusedWithTheReason) {
  const auto refused = [](const HierarchySpec& spec, const std::string& key, const std::string& why) {
    EXPECT_THAT(ResolveHierarchy(spec, "median", StrategyTrait::kNeedsAll),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr("hierarchy." + key), HasSubstr("strategy 'median' needs all updates at once"), HasSubstr(why))));
  };
  refused({.shape = HierarchyShape::kTree}, "shape", "middles of a tree see only sums");
  refused({.shape = HierarchyShape::kShard}, "shape", "only a range of the parameters");
  for (const TimingKind kind : {TimingKind::kEager, TimingKind::kBatch, TimingKind::kJit}) {
    refused({.timing = TimingSpec{.kind = kind}}, "timing", "expected lazy, got " + std::string(TimingKindName(kind)));
  }
  refused({.plan = {.kind = PlanKind::kStatic, .leaves = 2}}, "plan", "static:2");
}

TEST(HierarchyTest, AStrategyThatNeedsAllTakesTheRest) {
  EXPECT_THAT(ResolveHierarchy({.shape = HierarchyShape::kFlat, .timing = TimingSpec{.kind = TimingKind::kLazy}, .placement = "worstfit",
                                .plan = {.kind = PlanKind::kStatic, .leaves = 1}, .reuse = false},
                               "median", StrategyTrait::kNeedsAll),
              IsOk());
}

TEST(HierarchyTest, AnUnknownPlacementIsAWrongValueOfTheJob) {
  EXPECT_THAT(ResolveHierarchy({.placement = "bestfti"}, "fedavg", StrategyTrait::kMergeable),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("hierarchy.placement"), HasSubstr("did you mean 'bestfit'"))));
}

}  // namespace
}  // namespace tributary::aggregator
