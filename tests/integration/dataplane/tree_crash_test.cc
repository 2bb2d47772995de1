// kill -9 of leaf, middle and top at every named point and at random moments, in all shapes: the result is the undisturbed one, bit for
// bit, and nothing is left behind: no byte, no descriptor, no process (dataplane.md T13).
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "aggregator/core/kernels.h"
#include "tests/integration/dataplane/crashing_program.h"
#include "tests/integration/dataplane/left_behind.h"
#include "tests/integration/dataplane/pool_rig.h"
#include "tests/support/sanitized.h"

namespace tributary::aggregator {
namespace {

#ifdef TRIBUTARY_CRASH_POINTS
// ---- named points ----

struct PointCase {
  const char* where;
  const char* shape;
  Arithmetic arithmetic;
};
std::ostream& operator<<(std::ostream& out, const PointCase& c) {
  std::string where = c.where;
  std::replace(where.begin(), where.end(), ':', '_');
  return out << where << "_" << c.shape << (c.arithmetic == Arithmetic::kFloat64 ? "_fp64" : "_fixed");
}

class TreeCrashPointTest : public NothingLeftBehind, public ::testing::WithParamInterface<PointCase> {};

TEST_P(TreeCrashPointTest, TheResultIsTheUndisturbedOne) {
  const std::string shape = GetParam().shape;
  const bool fresh = shape == "fresh";
  // Every process dies once. Without reuse: start 0 is the pool's own worker, which has no seat; then come leaves, middles, top.
  const CrashingProgram program(GetParam().where, fresh ? "1 2 3 4 5 6 7" : "0 1 2 3");
  uint32_t restarts = 0;
  {
    PoolRig rig({.workers = fresh ? 1u : 4u, .elements = 2 * kBlockElements + 5, .counters = 2, .arithmetic = GetParam().arithmetic, .slots = 12,
                 .lane_capacity = 16, .hierarchy = shape == "wide" ? Tree(4) : Tree(4, 2, !fresh), .program = program.path()});
    // More in the second half of the leaves: partials come one after the other, and the last ones long after the first.
    rig.BeginRound(1, {.updates = 0, .leaves = {2, 2, 6, 10}});
    for (size_t i = 1; i <= 20; ++i) {
      rig.FoldRandom();
      // A leaf of ten that found them all at once would receive but once or twice.
      if (i == 10 || i == 15) {
        ASSERT_TRUE(rig.WaitFoldedBeyond(i - 1, absl::Seconds(60))) << rig.folded();
      }
    }
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
    restarts = rig.restarts();
    EXPECT_EQ(rig.lost(), 0) << rig.reason();
    EXPECT_EQ(rig.folded(), 20u);
    EXPECT_TRUE(rig.refused().empty());
    EXPECT_EQ(rig.objects->used_slots(), 0u);
    // And the next round is as if nothing had been.
    rig.BeginRound(2, {.updates = 8, .leaves = {}});
    for (int i = 0; i < 8; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
    restarts = std::max(restarts, rig.restarts());
  }
  EXPECT_GE(restarts, 1u) << "nobody passed the point";
}

std::vector<PointCase> PointCases() {
  std::vector<PointCase> cases;
  for (const char* where :
       {"worker_before_receive:1", "worker_before_receive:3", "worker_before_fold:1", "worker_in_block:2", "worker_after_block:2",
        "worker_before_done:1", "worker_after_done:1", "role_before_change:1", "role_before_change:2", "role_before_change:3",
        "role_after_change:1", "role_after_change:2", "role_after_change:3", "partial_before_publish:1", "partial_before_publish:2",
        "partial_before_send:1", "partial_after_send:1", "worker_before_merge:1", "worker_in_merge_block:1",
        "worker_in_merge_block:3", "worker_before_partial_done:1", "worker_after_partial_done:1"}) {
    for (const char* shape : {"wide", "middles", "fresh"}) {
      // A process that ends with its role takes one role, and publishes once.
      const std::string point = where;
      if (shape == std::string("fresh") && (point.starts_with("role_") || point.starts_with("partial_")) && !point.ends_with(":1")) continue;
      cases.push_back({where, shape, Arithmetic::kFixedPoint});
    }
    cases.push_back({where, "middles", Arithmetic::kFloat64});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Points, TreeCrashPointTest, ::testing::ValuesIn(PointCases()), ::testing::PrintToStringParamName());

using TreeCrashTest = NothingLeftBehind;

TEST_F(TreeCrashTest, AParentThatDiesAtTheSamePlaceEveryTimeLosesTheRoundInsteadOfLoopingForEver) {
  std::string all;
  for (int i = 0; i < 100; ++i) all += fmt::format("{} ", i);
  const CrashingProgram program("worker_before_merge:1", all);
  PoolRig rig({.workers = 2, .elements = 100, .hierarchy = Tree(2), .program = program.path()});
  rig.BeginRound(1, {.updates = 2, .leaves = {}});
  rig.FoldRandom();
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitLost());
  EXPECT_THAT(rig.reason(), ::testing::HasSubstr("died 8 times"));
}
#endif

// ---- random moments ----

struct KillPlan {
  const char* name;
  PoolHierarchy hierarchy;
  uint32_t workers;
  uint32_t kills;
  uint32_t seed;
};
std::ostream& operator<<(std::ostream& out, const KillPlan& plan) { return out << plan.name; }

class TreeRandomKillTest : public NothingLeftBehind, public ::testing::WithParamInterface<KillPlan> {};

// Rounds of random length, goals known or not, sums read in the middle or not, while another thread kills: half of the time whoever is
// middle or top.
TEST_P(TreeRandomKillTest, ChangeNoBitAndLoseNoUpdate) {
  const KillPlan& plan = GetParam();
  const absl::Time start = absl::Now();
  PoolRig rig({.workers = plan.workers, .elements = 6 * kBlockElements + 3, .counters = 1, .arithmetic = Arithmetic::kFixedPoint, .slots = 8,
               .hierarchy = plan.hierarchy});
  std::atomic<bool> enough = false;
  std::atomic<uint32_t> killed = 0, parents = 0;
  std::jthread killer([&] {
    std::mt19937 random(plan.seed);
    while (killed < plan.kills && rig.lost() == 0 && absl::Now() - start < absl::Seconds(testing::kSanitized ? 240 : 60)) {
      // Some progress between most of them: eight deaths in a row without any would rightly lose the round.
      if (random() % 4 != 0) rig.WaitFoldedBeyond(rig.folded(), absl::Seconds(2));  // on a busy machine a process takes a while to start
      std::optional<WorkerStatus> victim;
      const bool parent = plan.hierarchy.shape == PoolShape::kTree && random() % 2 == 0;
      for (const absl::Time until = absl::Now() + absl::Milliseconds(50); parent && !victim && absl::Now() < until;) {
        for (const WorkerStatus& worker : rig.pool->Status()) {
          if (worker.role == "top" || worker.role == "middle") victim = worker;
        }
      }
      absl::SleepFor(absl::Microseconds(random() % 4000));
      const std::vector<WorkerStatus> workers = rig.pool->Status();
      if (!victim) victim = workers[random() % workers.size()];
      // Only a pid that is a child of ours right now: it runs or is a zombie. 0 while there is none.
      const bool ours = std::ranges::any_of(workers, [&](const WorkerStatus& worker) { return worker.pid == victim->pid; });
      if (victim->pid <= 0 || !ours || ::kill(victim->pid, SIGKILL) != 0) continue;
      ++killed;
      if (parent) ++parents;
    }
    enough = true;
  });
  std::mt19937 random(plan.seed + 1000);
  size_t updates = 0;
  uint32_t rounds = 0;
  while (!enough) {
    const size_t count = 1 + random() % 24;
    rig.BeginRound(++rounds, {.updates = random() % 3 == 0 ? 0 : random() % 3 == 0 ? count / 2 : count, .leaves = {}});
    for (size_t i = 0; i < count; ++i) {
      rig.FoldRandom();
      ++updates;
      if (random() % 16 != 0) continue;
      rig.pool->Hurry(PoolRig::kJob);
      ASSERT_TRUE(rig.WaitSettled());
      rig.ExpectSumsEqualReference();
    }
    rig.pool->Hurry(PoolRig::kJob);
    ASSERT_TRUE(rig.WaitSettled());
    ASSERT_EQ(rig.lost(), 0) << rig.reason() << ", seed " << plan.seed;
    if (random() % 8 == 0) continue;  // given up: nobody reads it
    rig.ExpectSumsEqualReference();
    ASSERT_FALSE(HasFatalFailure()) << "round " << rounds << ", seed " << plan.seed;
  }
  killer.join();
  EXPECT_EQ(rig.folded(), updates);
  EXPECT_TRUE(rig.refused().empty());
  EXPECT_EQ(rig.objects->used_slots(), 0u);
  EXPECT_GE(killed, plan.kills);
  std::printf("%u kills (%u of them aimed at parents) in %u rounds, %zu updates, %.1f s\n", killed.load(), parents.load(), rounds, updates,
              absl::ToDoubleSeconds(absl::Now() - start));
}

INSTANTIATE_TEST_SUITE_P(Shapes, TreeRandomKillTest,
                         ::testing::Values(KillPlan{"flat", Shape(PoolShape::kFlat), 1, 60, 1}, KillPlan{"shard", Shape(PoolShape::kShard), 2, 60, 2},
                                           KillPlan{"tree", Tree(3), 3, 120, 3}, KillPlan{"tree_with_middles", Tree(4, 2), 4, 120, 4},
                                           KillPlan{"tree_on_two_workers_lazy", Timed(Tree(4), TimingKind::kLazy), 2, 80, 5},
                                           KillPlan{"tree_without_reuse", Tree(2, 0, false), 1, 60, 6}),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace tributary::aggregator
