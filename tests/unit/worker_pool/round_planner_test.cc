#include "aggregator/coordinator/round_planner.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t kSlab = 1 << 20;
const PlannerLimits kRoomy{.workers = 8, .sums_bytes = 64 * kSlab};
const absl::Time kBegin = absl::FromUnixSeconds(5000);

Hierarchy MakeHierarchy(HierarchyShape shape, PlanSpec plan) {
  Hierarchy hierarchy;
  hierarchy.shape = shape;
  hierarchy.placement = FindPlanner("bestfit");
  hierarchy.plan = plan;
  return hierarchy;
}
PlanSpec Static(int64_t leaves) { return {.kind = PlanKind::kStatic, .leaves = leaves}; }
PlanSpec Ewma(double weight = 0, absl::Duration period = absl::Seconds(30)) { return {.kind = PlanKind::kEwma, .weight = weight, .period = period}; }

std::vector<uint32_t> Leaves(RoundPlanner& planner, int64_t updates) { return planner.Next(1, updates).value().leaves; }

TEST(RoundPlannerTest, AStaticTreeSharesTheRoundsUpdatesAmongItsLeaves) {
  RoundPlanner planner(MakeHierarchy(HierarchyShape::kTree, Static(3)), kRoomy, 10, kSlab);
  EXPECT_EQ(planner.pool().shape, PoolShape::kTree);
  EXPECT_EQ(planner.pool().leaves, 3u);
  EXPECT_THAT(Leaves(planner, 10), ElementsAre(4, 3, 3));
  EXPECT_THAT(Leaves(planner, 2), ElementsAre(1, 1)) << "a leaf without an update would never finish";
  EXPECT_EQ(planner.Next(2, 0)->leaves.size(), 0u) << "nothing more is to come: no plan";
  EXPECT_FALSE(planner.EstimateDue(kBegin));
}

TEST(RoundPlannerTest, BeforeTheFirstEstimateEveryUpdateCountsAsInHand) {
  RoundPlanner planner(MakeHierarchy(HierarchyShape::kTree, Ewma()), kRoomy, 10, kSlab);
  EXPECT_TRUE(planner.EstimateDue(kBegin));
  planner.OnEstimate(kBegin, std::nullopt);
  EXPECT_EQ(planner.load(), std::nullopt);
  EXPECT_THAT(Leaves(planner, 10), ElementsAre(2, 2, 2, 2, 2)) << "two updates a leaf";
}

TEST(RoundPlannerTest, TheLoadSetsTheNumberOfLeavesOncePerPeriod) {
  RoundPlanner planner(MakeHierarchy(HierarchyShape::kTree, Ewma(0.5)), kRoomy, 12, kSlab);
  planner.OnEstimate(kBegin, LoadEstimator::Estimate{.load = 5.5});
  EXPECT_EQ(Leaves(planner, 12).size(), 3u);
  EXPECT_FALSE(planner.EstimateDue(kBegin + absl::Seconds(29)));
  EXPECT_TRUE(planner.EstimateDue(kBegin + absl::Seconds(30)));
  planner.OnEstimate(kBegin + absl::Seconds(30), LoadEstimator::Estimate{.load = 1.5});
  EXPECT_EQ(planner.load(), 3.5);
  EXPECT_EQ(Leaves(planner, 12).size(), 2u);
  planner.OnEstimate(kBegin + absl::Seconds(60), std::nullopt);
  EXPECT_EQ(planner.load(), 3.5) << "a rest teaches nothing";
  EXPECT_EQ(planner.leaves(), 2);
}

TEST(RoundPlannerTest, WorkersAndMemoryBoundTheLeaves) {
  const auto leaves = [](const PlannerLimits& limits, PlanSpec plan, bool reuse = true) {
    Hierarchy hierarchy = MakeHierarchy(HierarchyShape::kTree, plan);
    hierarchy.reuse = reuse;
    RoundPlanner planner(hierarchy, limits, 100, kSlab);
    EXPECT_EQ(Leaves(planner, 100).size(), planner.pool().leaves) << "no plan asks for more than the pool has made";
    return planner.pool().leaves;
  };
  EXPECT_EQ(leaves({.workers = 2, .sums_bytes = 64 * kSlab}, Static(5)), 2u);
  EXPECT_EQ(leaves({.workers = 2, .sums_bytes = 64 * kSlab}, Ewma()), 2u);
  EXPECT_EQ(leaves({.workers = 8, .sums_bytes = 3 * kSlab}, Ewma()), 3u);
  EXPECT_EQ(leaves({.workers = 8, .sums_bytes = 3 * kSlab}, Ewma(), /*reuse=*/false), 2u) << "the third holds the top's sums";
  EXPECT_EQ(leaves({.workers = 8, .sums_bytes = 0}, Static(8)), 1u);
  EXPECT_EQ(leaves({.workers = 64, .sums_bytes = 64 * kSlab}, Static(64)), 32u);
}

TEST(RoundPlannerTest, ShardAndFlatHaveNoLeavesToPlan) {
  RoundPlanner shard(MakeHierarchy(HierarchyShape::kShard, Static(3)), kRoomy, 10, kSlab);
  EXPECT_EQ(shard.pool().shape, PoolShape::kShard);
  EXPECT_EQ(shard.pool().shards, 3u);
  EXPECT_FALSE(shard.EstimateDue(kBegin));
  RoundPlanner flat(MakeHierarchy(HierarchyShape::kFlat, Ewma()), kRoomy, 10, kSlab);
  EXPECT_EQ(flat.pool().shape, PoolShape::kFlat);
  EXPECT_FALSE(flat.EstimateDue(kBegin));
  const RoundGoals goals = flat.Next(1, 7).value();
  EXPECT_EQ(goals.updates, 7u);
  EXPECT_EQ(goals.leaves.size(), 0u);
}

TEST(RoundPlannerTest, TimingReuseAndTheWindowOfThePeriodReachThePool) {
  Hierarchy hierarchy = MakeHierarchy(HierarchyShape::kTree, Ewma(0.7, absl::Minutes(2)));
  hierarchy.timing = {.kind = TimingKind::kJit, .slack = absl::Milliseconds(7)};
  hierarchy.reuse = false;
  const RoundPlanner planner(hierarchy, kRoomy, 10, kSlab);
  EXPECT_EQ(planner.pool().timing, hierarchy.timing);
  EXPECT_FALSE(planner.pool().reuse);
  EXPECT_EQ(planner.pool().load_window, absl::Minutes(2));
}

// A round of 12 planned for six leaves before anything was known. `taken` of the first ones; a leaf with all its updates is closed.
WorkerPool::RoundProgress Progress(const std::vector<uint64_t>& taken, size_t planned, uint64_t goal, size_t leaves) {
  WorkerPool::RoundProgress progress;
  for (size_t i = 0; i < leaves; ++i) {
    const uint64_t has = i < taken.size() ? taken[i] : 0;
    progress.leaves.push_back({.taken = has, .open = i < planned && has < goal, .free = i >= planned});
    progress.top = progress.top || (has == goal);
  }
  return progress;
}

TEST(RoundPlannerTest, ANewEstimateWithinARoundPlansWhatHasNotCome) {
  RoundPlanner planner(MakeHierarchy(HierarchyShape::kTree, Ewma()), kRoomy, 12, kSlab);
  EXPECT_EQ(planner.replan_due(), absl::InfiniteFuture()) << "there is no plan yet";
  planner.OnEstimate(kBegin, std::nullopt);
  ASSERT_THAT(Leaves(planner, 12), ElementsAre(2, 2, 2, 2, 2, 2));
  EXPECT_EQ(planner.replan_due(), kBegin + absl::Seconds(30));
  planner.OnEstimate(kBegin + absl::Seconds(30), LoadEstimator::Estimate{.load = 3});
  // Leaf 0 is complete, leaf 1 has one: two leaves are enough for the nine that are still to come.
  const absl::StatusOr<RoundGoals> goals = planner.Replan(Progress({2, 1}, 6, 2, 6));
  ASSERT_TRUE(goals.ok()) << goals.status();
  EXPECT_THAT(goals->leaves, ElementsAre(2, 5, 5, 0, 0, 0));
  EXPECT_EQ(planner.leaves(), 3);
  EXPECT_EQ(planner.replans(), 1u);
}

TEST(RoundPlannerTest, ALoadThatRoseOpensLeavesInTheirRound) {
  RoundPlanner planner(MakeHierarchy(HierarchyShape::kTree, Ewma()), {.workers = 4, .sums_bytes = 64 * kSlab}, 12, kSlab);
  planner.OnEstimate(kBegin, LoadEstimator::Estimate{.load = 1});
  ASSERT_THAT(Leaves(planner, 12), ElementsAre(12));
  planner.OnEstimate(kBegin + absl::Seconds(30), LoadEstimator::Estimate{.load = 5});
  absl::StatusOr<RoundGoals> goals = planner.Replan(Progress({4}, 1, 12, 4));
  ASSERT_TRUE(goals.ok()) << goals.status();
  EXPECT_THAT(goals->leaves, ElementsAre(4, 4, 4, 0)) << "three leaves for the eight to come, the first has four already";
  // Back to one: those with nothing go first.
  WorkerPool::RoundProgress progress = Progress({4, 1}, 3, 0, 4);
  progress.leaves[0].open = false;
  progress.leaves[1].open = progress.leaves[2].open = true;
  progress.top = true;
  planner.OnEstimate(kBegin + absl::Seconds(60), LoadEstimator::Estimate{.load = 0.5});
  goals = planner.Replan(progress);
  ASSERT_TRUE(goals.ok()) << goals.status();
  EXPECT_THAT(goals->leaves, ElementsAre(4, 8, 0, 0));
  EXPECT_THAT(RoundPlanner(MakeHierarchy(HierarchyShape::kTree, Ewma()), kRoomy, 12, kSlab).Replan(progress),
              testing::StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(RoundPlannerTest, ACalibratedCapacityFlagsWhatIsBeyondTheResidual) {
  PlannerLimits limits = kRoomy;
  for (const HierarchyShape shape : {HierarchyShape::kFlat, HierarchyShape::kShard, HierarchyShape::kTree}) {
    limits.capacity.reset();
    RoundPlanner unknown(MakeHierarchy(shape, Ewma()), limits, 12, kSlab);
    ASSERT_TRUE(unknown.Next(1, 12).ok());
    EXPECT_EQ(unknown.residual(), std::nullopt);
    EXPECT_EQ(unknown.overloads(), 0) << "nothing is known, nothing is flagged";
    limits.capacity = 10;
    RoundPlanner planner(MakeHierarchy(shape, Ewma()), limits, 12, kSlab);
    ASSERT_TRUE(planner.EstimateDue(kBegin));
    planner.OnEstimate(kBegin, std::nullopt, /*node_load=*/0);
    ASSERT_TRUE(planner.Next(1, 8).ok());
    EXPECT_EQ(planner.overloads(), 0);
    planner.OnEstimate(kBegin + absl::Seconds(30), LoadEstimator::Estimate{.load = 4, .mean_load = 3}, /*node_load=*/7);
    EXPECT_EQ(planner.residual(), 3);
    ASSERT_TRUE(planner.Next(2, 8).ok());
    EXPECT_EQ(planner.overloads(), shape == HierarchyShape::kFlat ? 8 : 5) << HierarchyShapeName(shape);
  }
}

}  // namespace
}  // namespace tributary::aggregator
