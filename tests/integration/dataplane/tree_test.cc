// The three shapes of a job with real worker processes: the same sums, promotion in place, partials read where they are.
#include <algorithm>
#include <fstream>
#include <map>
#include <random>

#include "aggregator/core/kernels.h"
#include "tests/integration/dataplane/pool_rig.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr size_t kThreeBlocks = 2 * kBlockElements + 77;

struct ShapeCase {
  const char* name;
  PoolHierarchy hierarchy;
  uint32_t workers;
};
std::ostream& operator<<(std::ostream& out, const ShapeCase& c) { return out << c.name; }

std::vector<ShapeCase> Shapes() {
  return {
      {"flat", Shape(PoolShape::kFlat), 2},
      {"flat_lazy", Timed(Shape(PoolShape::kFlat), TimingKind::kLazy), 2},
      {"shard", Shape(PoolShape::kShard), 2},
      {"shard_batch", Timed(Shape(PoolShape::kShard), TimingKind::kBatch), 3},
      {"shard_lazy", Timed(Shape(PoolShape::kShard), TimingKind::kLazy), 3},
      {"shard_jit", Timed(Shape(PoolShape::kShard), TimingKind::kJit), 3},
      {"tree_of_one", Tree(1), 1},
      {"tree_of_two", Tree(2), 2},
      {"tree_of_two_lazy", Timed(Tree(2), TimingKind::kLazy), 2},
      {"tree_of_two_jit", Timed(Tree(2), TimingKind::kJit), 2},
      {"tree_of_three_batch", Timed(Tree(3), TimingKind::kBatch), 3},
      {"tree_of_five_on_two_workers", Tree(5), 2},
      {"tree_with_middles", Tree(4, 2), 4},
      {"tree_with_uneven_middles", Tree(5, 2), 3},
      {"tree_without_reuse", Tree(3, 0, false), 1},
      {"tree_with_middles_without_reuse", Tree(4, 2, false), 2},
  };
}

class ShapeTest : public ::testing::TestWithParam<ShapeCase> {
 protected:
  RigOptions Options(Arithmetic arithmetic) const {
    return {.workers = GetParam().workers, .elements = kThreeBlocks, .counters = 3, .arithmetic = arithmetic, .slots = 16,
            .lane_capacity = 16, .hierarchy = GetParam().hierarchy};
  }
};

// The reference folds in this process, one update after the other: equal to it means equal to each other.
TEST_P(ShapeTest, ReproducibleSumsAreTheReferencesBitsOverSeveralRounds) {
  PoolRig rig(Options(Arithmetic::kFixedPoint));
  for (uint32_t round = 1; round <= 4; ++round) {
    // Without a goal, with one, with one that is too small and one that is too large.
    const uint64_t goal = std::array<uint64_t, 4>{0, 30, 11, 45}[round - 1];
    rig.BeginRound(round, {.updates = goal, .leaves = {}});
    for (int i = 0; i < 30; ++i) rig.FoldRandom();
    rig.pool->Hurry(PoolRig::kJob);  // lazy folding without a goal would wait
    ASSERT_TRUE(rig.WaitSettled());
    ASSERT_EQ(rig.folded(), round * 30u);
    EXPECT_EQ(rig.objects->used_slots(), 0u);
    rig.ExpectSumsEqualReference();
    ASSERT_FALSE(HasFatalFailure()) << "round " << round;
  }
  EXPECT_EQ(rig.restarts(), 0u);
  EXPECT_EQ(rig.lost(), 0) << rig.reason();
}

TEST_P(ShapeTest, FloatSumsAreWithinAMillionthOfTheReference) {
  PoolRig rig(Options(Arithmetic::kFloat64));
  rig.BeginRound(1, {.updates = 40, .leaves = {}});
  for (int i = 0; i < 40; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
}

// A partial is journalled in the middle of a round: sums are read, and folding goes on with them.
TEST_P(ShapeTest, SumsReadInTheMiddleOfARoundAreFoldedOn) {
  PoolRig rig(Options(Arithmetic::kFixedPoint));
  rig.BeginRound(1, {.updates = 20, .leaves = {}});
  for (const int count : {7, 1, 0, 9, 20}) {
    for (int i = 0; i < count; ++i) rig.FoldRandom();
    rig.pool->Hurry(PoolRig::kJob);
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
    ASSERT_FALSE(HasFatalFailure()) << "after " << count << " more";
  }
}

TEST_P(ShapeTest, RestoredSumsAreFoldedOn) {
  PoolRig rig(Options(Arithmetic::kFixedPoint));
  for (int i = 0; i < 6; ++i) rig.FoldRandom();
  rig.pool->Hurry(PoolRig::kJob);
  ASSERT_TRUE(rig.WaitSettled());
  const std::vector<std::byte> state = rig.State();
  const auto sums = rig.pool->ReadSums(PoolRig::kJob);
  ASSERT_THAT(sums, IsOk());
  const std::vector<int64_t> counters(sums->counters.begin(), sums->counters.end());
  ASSERT_THAT(rig.pool->BeginRound(PoolRig::kJob, 2), IsOk());  // not the rig's: the reference is kept
  ASSERT_THAT(rig.pool->WriteSums(PoolRig::kJob, state, counters), IsOk());
  EXPECT_THAT(rig.pool->WriteSums(PoolRig::kJob, state, counters), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("in use")));
  rig.ExpectSumsEqualReference();
  for (int i = 0; i < 9; ++i) rig.FoldRandom();
  rig.pool->Hurry(PoolRig::kJob);
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
}

TEST_P(ShapeTest, BadUpdatesAreRefusedByNameAndTheirNeighboursFolded) {
  PoolRig rig(Options(Arithmetic::kFixedPoint));
  rig.BeginRound(1, {.updates = 30, .leaves = {}});
  std::set<UpdateId> bad;
  for (int i = 0; i < 30; ++i) {
    if (i % 3 == 0) {
      bad.insert(rig.Fold(std::vector<float>(kThreeBlocks, 1e30f), 1, std::vector<int64_t>(3, 1'000'000), /*expect=*/false));
    } else {
      rig.FoldRandom();
    }
  }
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_EQ(rig.lost(), 0) << rig.reason();
  EXPECT_EQ(rig.refused(), bad);
  rig.ExpectSumsEqualReference();
}

TEST_P(ShapeTest, ARoundOfNothingButBadUpdatesHasNoSums) {
  PoolRig rig(Options(Arithmetic::kFixedPoint));
  rig.BeginRound(1, {.updates = 6, .leaves = {}});
  for (int i = 0; i < 6; ++i) rig.Fold(std::vector<float>(kThreeBlocks, 1e30f), 1, std::vector<int64_t>(3, 1), /*expect=*/false);
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_EQ(rig.refused().size(), 6u);
  EXPECT_THAT(rig.pool->ReadSums(PoolRig::kJob), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("nothing was folded")));
  rig.FoldRandom();
  rig.pool->Hurry(PoolRig::kJob);
  EXPECT_TRUE(rig.WaitFoldedBeyond(0, absl::Seconds(30)));
  rig.ExpectSumsEqualReference();
}

TEST_P(ShapeTest, ARoundThatIsGivenUpLeavesNothingBehind) {
  PoolRig rig(Options(Arithmetic::kFixedPoint));
  for (uint32_t round = 1; round <= 10; ++round) {
    rig.BeginRound(round, {.updates = 8, .leaves = {}});
    for (uint32_t i = 0; i < 8; ++i) rig.FoldRandom();  // leaves complete, partials travel, nobody reads
    ASSERT_TRUE(rig.WaitSettled());
    EXPECT_EQ(rig.lost(), 0) << rig.reason();
  }
  rig.ExpectSumsEqualReference();
}

INSTANTIATE_TEST_SUITE_P(Shapes, ShapeTest, ::testing::ValuesIn(Shapes()), ::testing::PrintToStringParamName());

// ---- roles ----

std::vector<std::string> Roles(const PoolRig& rig) {
  std::vector<std::string> roles;
  for (const WorkerStatus& worker : rig.pool->Status()) roles.push_back(worker.role);
  return roles;
}

// Of what the daemon is told by workers nothing is synchronous: look until it is so.
bool Eventually(const std::function<bool()>& so) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!so()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

TEST(TreeTest, TheLeafThatIsCompleteFirstBecomesTheTopInItsOwnProcessWithItsOwnSlab) {
  PoolRig rig({.workers = 2, .elements = kThreeBlocks, .hierarchy = Tree(2)});
  rig.BeginRound(1, {.updates = 0, .leaves = {1, 3}});
  const std::vector<WorkerStatus> before = rig.pool->Status();
  EXPECT_THAT(Roles(rig), ::testing::Each("leaf"));
  rig.FoldRandom();
  ASSERT_TRUE(Eventually([&] { return std::ranges::count(Roles(rig), "top") == 1; }));
  for (int i = 0; i < 3; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
  EXPECT_EQ(std::ranges::count(Roles(rig), "parked"), 1) << "the other leaf has sent its partial";
  const std::vector<WorkerStatus> after = rig.pool->Status();
  ASSERT_EQ(after.size(), 2u);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(after[i].pid, before[i].pid);
  TRIB_ASSERT_OK_AND_ASSIGN(const WorkerPool::TreeStats stats, rig.pool->StatsOf(PoolRig::kJob));
  EXPECT_EQ(stats.promotions, 1u);
  EXPECT_EQ(stats.starts, 0u);
  EXPECT_EQ(stats.partials, 1u);
  EXPECT_EQ(stats.role_seconds.size(), 1u);
}

TEST(TreeTest, WithoutReuseEveryRoleIsAProcessOfItsOwnWhichEndsWithItsRound) {
  PoolRig rig({.workers = 1, .elements = kThreeBlocks, .hierarchy = Tree(2, 0, false)});
  for (uint32_t round = 1; round <= 3; ++round) {
    rig.BeginRound(round, {.updates = 4, .leaves = {}});
    for (int i = 0; i < 4; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
    TRIB_ASSERT_OK_AND_ASSIGN(const WorkerPool::TreeStats stats, rig.pool->StatsOf(PoolRig::kJob));
    EXPECT_EQ(stats.starts, 3 * round) << "two leaves and a top";
    EXPECT_EQ(stats.promotions, 0u);
    ASSERT_TRUE(Eventually([&] { return rig.pool->Status().size() == 4; })) << "those of the round before have ended";
  }
}

TEST(TreeTest, UpdatesGoToTheLeavesByTheirGoals) {
  PoolRig rig({.workers = 3, .elements = 100, .slots = 64, .hierarchy = Tree(3)});
  rig.BeginRound(1, {.updates = 0, .leaves = {5, 0, 2}});
  for (int i = 0; i < 7; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  std::vector<uint64_t> folded;
  for (const WorkerStatus& worker : rig.pool->Status()) folded.push_back(worker.folded);
  std::ranges::sort(folded);
  EXPECT_THAT(folded, ::testing::ElementsAre(0u, 2u, 5u));
  rig.ExpectSumsEqualReference();
}

TEST(TreeTest, ATreeOfUnequalSpeedGivesWhatAFlatOneGives) {
  // One leaf gets everything, the others nothing: the close lets them out.
  PoolRig rig({.workers = 4, .elements = kThreeBlocks, .arithmetic = Arithmetic::kFixedPoint, .hierarchy = Tree(4, 2)});
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
  TRIB_ASSERT_OK_AND_ASSIGN(const WorkerPool::TreeStats stats, rig.pool->StatsOf(PoolRig::kJob));
  EXPECT_EQ(stats.partials, 0u);
  EXPECT_EQ(stats.promotions, 2u) << "leaf, middle, top: all the same seat";
}

// ---- plans within a round, and processes by plan ----

WorkerPool::RoundPlanFunction Goals(std::vector<uint32_t> leaves, WorkerPool::RoundProgress* seen = nullptr) {
  return [leaves = std::move(leaves), seen](const WorkerPool::RoundProgress& progress) -> absl::StatusOr<RoundGoals> {
    if (seen != nullptr) *seen = progress;
    return RoundGoals{.updates = 0, .leaves = leaves};
  };
}

TEST(TreeTest, APlanWithinARoundOpensClosesAndDropsLeaves) {
  for (const bool reuse : {true, false}) {
    PoolRig rig({.workers = 4, .elements = kThreeBlocks, .counters = 3, .arithmetic = Arithmetic::kFixedPoint, .slots = 16, .lane_capacity = 16,
                 .hierarchy = Tree(4, 0, reuse)});
    rig.BeginRound(1, {.updates = 12, .leaves = {2, 6, 4, 0}});
    for (int i = 0; i < 4; ++i) rig.FoldRandom();  // by queue: two, one and one, or whoever was quicker
    ASSERT_TRUE(rig.WaitSettled());
    WorkerPool::RoundProgress seen;
    ASSERT_THAT(rig.pool->Replan(PoolRig::kJob, Goals({}, &seen)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("leaf 0")))
        << "a leaf keeps what it has";
    ASSERT_EQ(seen.leaves.size(), 4u);
    uint64_t taken = 0;
    for (const WorkerPool::LeafProgress& leaf : seen.leaves) taken += leaf.taken;
    EXPECT_EQ(taken, 4u);
    EXPECT_TRUE(seen.leaves[3].free);
    EXPECT_FALSE(seen.leaves[3].open);
    EXPECT_TRUE(seen.leaves[1].open);
    // The second leaf closes at what it has, the fourth takes all the rest.
    std::vector<uint32_t> goals;
    uint32_t left = 12;
    for (size_t i = 0; i < 3; ++i) {
      goals.push_back(static_cast<uint32_t>(seen.leaves[i].taken));
      left -= goals.back();
    }
    goals.push_back(left);
    ASSERT_THAT(rig.pool->Replan(PoolRig::kJob, Goals(goals)), IsOk());
    EXPECT_THAT(rig.pool->Replan(PoolRig::kJob, Goals({9, 9, 9, 9})), StatusIs(absl::StatusCode::kInvalidArgument)) << "closed is closed";
    for (int i = 0; i < 8; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
    EXPECT_EQ(rig.lost(), 0) << rig.reason();
    EXPECT_THAT(rig.pool->Replan(PoolRig::kJob, Goals(goals)), StatusIs(absl::StatusCode::kFailedPrecondition)) << "the sums were read";
    uint64_t by_fourth = 0;
    for (const WorkerStatus& worker : rig.pool->Status()) {
      for (const SeatStatus& seat : worker.seats) by_fourth += seat.number == 3 ? seat.taken : 0;
    }
    EXPECT_EQ(by_fourth, left);
    // The next round has nothing of it.
    rig.BeginRound(2, {.updates = 4, .leaves = {2, 2}});
    for (int i = 0; i < 4; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
  }
}

TEST(TreeTest, RandomPlansWithinRoundsCountEveryUpdateOnce) {
  PoolRig rig({.workers = 4, .elements = 1000, .counters = 1, .arithmetic = Arithmetic::kFixedPoint, .slots = 8, .lane_capacity = 8, .hierarchy = Tree(6)});
  std::mt19937 random(7);
  size_t replanned = 0;
  for (uint32_t round = 1; round <= 30; ++round) {
    const auto updates = static_cast<uint32_t>(1 + random() % 24);
    rig.BeginRound(round, {.updates = updates, .leaves = {updates}});
    for (uint32_t i = 0; i < updates; ++i) {
      rig.FoldRandom();
      if (random() % 3 != 0) continue;
      const absl::Status planned = rig.pool->Replan(PoolRig::kJob, [&](const WorkerPool::RoundProgress& progress) -> absl::StatusOr<RoundGoals> {
        RoundGoals goals;
        uint32_t left = updates;
        for (const WorkerPool::LeafProgress& leaf : progress.leaves) {
          goals.leaves.push_back(static_cast<uint32_t>(leaf.taken));
          left -= static_cast<uint32_t>(leaf.taken);
        }
        for (size_t at = random() % progress.leaves.size(), tries = 0; left > 0; ++at, ++tries) {
          const WorkerPool::LeafProgress& leaf = progress.leaves[at % progress.leaves.size()];
          if (tries > 2 * progress.leaves.size()) return Unavailable("all leaves are closed");
          if (!leaf.open && !leaf.free) continue;
          const uint32_t share = tries > progress.leaves.size() ? left : static_cast<uint32_t>(random() % (left + 1));
          goals.leaves[at % progress.leaves.size()] += share;
          left -= share;
        }
        return goals;
      });
      replanned += planned.ok() ? 1 : 0;
      ASSERT_TRUE(planned.ok() || planned.code() == absl::StatusCode::kUnavailable) << planned << ", round " << round;
    }
    ASSERT_TRUE(rig.WaitSettled());
    ASSERT_EQ(rig.lost(), 0) << rig.reason();
    rig.ExpectSumsEqualReference();
    ASSERT_FALSE(HasFatalFailure()) << "round " << round;
  }
  EXPECT_GT(replanned, 20u);
}

TEST(TreeTest, ProcessesThatNoPlanNeedsEndAndComeBackWhenOneDoes) {
  PoolRig rig({.workers = 4, .elements = kThreeBlocks, .arithmetic = Arithmetic::kFixedPoint, .slots = 16, .lane_capacity = 16, .hierarchy = Tree(4),
               .scale_period = absl::Milliseconds(20)});
  auto round = [&, number = 1u](const std::vector<uint32_t>& leaves) mutable {
    rig.BeginRound(++number, {.updates = 8, .leaves = leaves});
    for (int i = 0; i < 8; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
  };
  const auto roles = [&] {
    std::map<std::string, int> count;
    for (const WorkerStatus& worker : rig.pool->Status()) ++count[worker.role];
    return count;
  };
  round({2, 2, 2, 2});
  EXPECT_EQ(roles()["cold"], 0);
  for (int i = 0; i < 100 && rig.pool->Scaling().evictions < 3; ++i) {
    round({8});
    absl::SleepFor(absl::Milliseconds(25));
  }
  EXPECT_EQ(rig.pool->Scaling().evictions, 3u);
  EXPECT_EQ(rig.pool->Scaling().starts, 0u);
  EXPECT_EQ(roles()["cold"], 3);
  for (int i = 0; i < 100 && std::ranges::any_of(rig.pool->Status(), [](const WorkerStatus& w) { return w.role == "cold" && w.pid != 0; }); ++i) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  for (const WorkerStatus& worker : rig.pool->Status()) EXPECT_EQ(worker.pid != 0, worker.role != "cold");
  round({2, 2, 2, 2});
  EXPECT_EQ(rig.pool->Scaling().starts, 3u);
  EXPECT_EQ(roles()["cold"], 0);
  EXPECT_EQ(rig.restarts(), 0u) << "nobody died";
}

// Sums that were read begin a lap without a plan: its leaves need their processes all the same.
TEST(TreeTest, ALapThatBeginsByItselfHasItsProcesses) {
  PoolRig rig({.workers = 3, .elements = 1000, .arithmetic = Arithmetic::kFixedPoint, .slots = 16, .lane_capacity = 16, .hierarchy = Tree(3),
               .scale_period = absl::Milliseconds(1)});
  for (uint32_t round = 2; round < 40; ++round) {
    rig.BeginRound(round, {.updates = 6, .leaves = {6}});
    const int first = 1 + static_cast<int>(round % 5);
    for (int i = 0; i < first; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
    for (int i = first; i < 8; ++i) rig.FoldRandom();  // and two too many
    ASSERT_TRUE(rig.WaitSettled()) << "round " << round;
    rig.ExpectSumsEqualReference();
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_GT(rig.pool->Scaling().evictions, 0u);
}

TEST(TreeTest, NamesWhatCannotBe) {
  PoolRig rig({});
  const auto open = [&](const PoolHierarchy& hierarchy) {
    return rig.pool->OpenJob({.job = 9, .strategy = "fedavg", .layout = rig.layout, .hierarchy = hierarchy}, rig.objects.get());
  };
  EXPECT_THAT(open(Tree(0)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 to 32 leaves, got 0")));
  EXPECT_THAT(open(Tree(33)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("33")));
  EXPECT_THAT(open(Tree(4, 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fan-in")));
  PoolHierarchy hierarchy;
  hierarchy.max_fold = 17;
  EXPECT_THAT(open(hierarchy), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("17")));
  hierarchy = {};
  hierarchy.timing = {.kind = TimingKind::kBatch, .batch = 0};
  EXPECT_THAT(open(hierarchy), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("batch")));
  EXPECT_THAT(rig.pool->BeginRound(PoolRig::kJob, 2, {.updates = 0, .leaves = {1, 2, 3}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("goals for at most 2 leaves")));
  EXPECT_THAT(rig.pool->StatsOf(77), StatusIs(absl::StatusCode::kNotFound));
}

TEST(TreeTest, SlabMemoryIsOneModelsSumsForEachLeaf) {
  const TensorLayout layout = MakeLayout(kThreeBlocks, 3);
  const auto memory = [&](const PoolHierarchy& hierarchy) {
    return WorkerPool::SlabMemory({.job = 1, .strategy = "fedavg", .layout = layout, .hierarchy = hierarchy}).value();
  };
  const size_t one = memory(Shape(PoolShape::kFlat));
  EXPECT_GE(one, kThreeBlocks * 8);
  EXPECT_EQ(memory(Tree(4)), 4 * one);
  EXPECT_EQ(memory(Tree(4, 2, false)), 7 * one);
  EXPECT_EQ(memory(Tree(4, 0, false)), 5 * one);
}

// ---- timing ----

TEST(TimingTest, LazyWaitsForTheGoalAndFoldsAllAtOnce) {
  PoolRig rig({.workers = 2, .elements = kThreeBlocks, .slots = 16, .lane_capacity = 16, .hierarchy = Timed(Shape(PoolShape::kShard), TimingKind::kLazy)});
  rig.BeginRound(1, {.updates = 6, .leaves = {}});
  for (int i = 0; i < 5; ++i) rig.FoldRandom();
  EXPECT_FALSE(rig.WaitFoldedBeyond(0, absl::Milliseconds(100)));
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
}

TEST(TimingTest, LazyGivesInWhenNoSlotIsLeftToWaitWith) {
  for (const PoolHierarchy& hierarchy : {Shape(PoolShape::kFlat), Tree(2)}) {
    PoolRig rig({.workers = 2, .elements = 100, .slots = 8, .hierarchy = Timed(hierarchy, TimingKind::kLazy)});
    rig.BeginRound(1, {.updates = 100, .leaves = {}});
    for (int i = 0; i < 100; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
  }
}

TEST(TimingTest, ABatchIsFoldedWhenItIsFullOrOld) {
  PoolHierarchy hierarchy = Shape(PoolShape::kFlat);
  hierarchy.timing = {.kind = TimingKind::kBatch, .batch = 4, .age = absl::Hours(1)};
  {
    PoolRig rig({.elements = 100, .slots = 16, .hierarchy = hierarchy});
    for (int i = 0; i < 3; ++i) rig.FoldRandom();
    EXPECT_FALSE(rig.WaitFoldedBeyond(0, absl::Milliseconds(100)));
    rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
  }
  hierarchy.timing.age = absl::Milliseconds(20);
  PoolRig rig({.elements = 100, .slots = 16, .hierarchy = hierarchy});
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled()) << "the first one gets old";
  rig.ExpectSumsEqualReference();
}

TEST(TimingTest, JitWaitsForTheLastArrivalThatEarlierRoundsPredict) {
  PoolHierarchy hierarchy = Shape(PoolShape::kFlat);
  hierarchy.timing = {.kind = TimingKind::kJit, .slack = absl::ZeroDuration()};
  PoolRig rig({.elements = 100, .slots = 16, .hierarchy = hierarchy});
  // A round whose last update comes late: the next one is expected to be like it.
  rig.BeginRound(1, {.updates = 3, .leaves = {}});
  for (int i = 0; i < 2; ++i) rig.FoldRandom();
  absl::SleepFor(absl::Seconds(1));  // a busy machine may take a good part of it for what follows
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.BeginRound(2, {.updates = 3, .leaves = {}});
  for (int i = 0; i < 2; ++i) rig.FoldRandom();
  EXPECT_FALSE(rig.WaitFoldedBeyond(3, absl::Milliseconds(100))) << "far from the predicted last arrival";
  EXPECT_TRUE(rig.WaitFoldedBeyond(4, absl::Seconds(10))) << "then it begins, though one is missing";
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
}

// ---- load ----

TEST(LoadTest, WhatWaitsForAFullBatchIsNotInHand) {
  PoolHierarchy hierarchy = Shape(PoolShape::kFlat);
  hierarchy.timing = {.kind = TimingKind::kLazy};
  hierarchy.load_window = absl::Seconds(60);
  PoolRig rig({.elements = 100, .slots = 16, .hierarchy = hierarchy});
  EXPECT_EQ(rig.pool->LoadOf(PoolRig::kJob).value(), std::nullopt) << "nothing was folded";
  rig.BeginRound(1, {.updates = 8, .leaves = {}});
  for (int i = 0; i < 7; ++i) rig.FoldRandom();
  absl::SleepFor(absl::Seconds(1));  // of idling, by policy
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  const std::optional<LoadEstimator::Estimate> load = rig.pool->LoadOf(PoolRig::kJob).value();
  ASSERT_TRUE(load.has_value());
  EXPECT_GT(load->seconds, 0);
  EXPECT_LT(load->seconds, 0.9) << "the second of waiting is not in it";
  EXPECT_GT(load->load, 1) << "eight at once";
  EXPECT_LE(load->load, 8.01);
  EXPECT_NEAR(load->load, load->rate * load->seconds, 1e-6) << "Little's law";
}

// What the timing lets go is more than one pass takes, and its rest must not wait to become a batch of its own.
TEST(TimingTest, AllThatIsDueIsFoldedAlsoInSeveralPasses) {
  PoolHierarchy hierarchy = Shape(PoolShape::kFlat);
  hierarchy.timing = {.kind = TimingKind::kBatch, .batch = 5, .age = absl::Hours(1)};
  hierarchy.max_fold = 2;
  PoolRig rig({.elements = 100, .slots = 16, .hierarchy = hierarchy});
  for (int i = 0; i < 5; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
}

// ---- figures ----

TEST(StatusTest, TellsRoleQueueMeanTimeAndRateOfEveryWorker) {
  PoolHierarchy hierarchy = Timed(Shape(PoolShape::kShard), TimingKind::kLazy);
  PoolRig rig({.workers = 2, .elements = kThreeBlocks, .slots = 16, .lane_capacity = 16, .hierarchy = hierarchy});
  rig.BeginRound(1, {.updates = 10, .leaves = {}});
  for (int i = 0; i < 9; ++i) rig.FoldRandom();
  for (const WorkerStatus& worker : rig.pool->Status()) {
    EXPECT_EQ(worker.role, "range");
    EXPECT_EQ(worker.queued, 9u);
    EXPECT_EQ(worker.seconds_per_update, 0) << "none yet";
    EXPECT_NEAR(worker.updates_per_second, 0.9, 0.1) << "nine, over a window of ten seconds";
  }
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  for (const WorkerStatus& worker : rig.pool->Status()) {
    EXPECT_EQ(worker.queued, 0u);
    EXPECT_EQ(worker.folded, 10u);
    EXPECT_GT(worker.seconds_per_update, 1e-7);
    EXPECT_LT(worker.seconds_per_update, 1.0);
  }
}

}  // namespace
}  // namespace tributary::aggregator
