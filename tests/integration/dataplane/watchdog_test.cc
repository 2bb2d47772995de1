// A worker that stops (SIGSTOP) in the middle of its work, at named points and from outside: it is found, killed and replaced, and the sums
// are the undisturbed ones, bit for bit. Workers that only wait are left alone.
#include <signal.h>

#include "aggregator/core/kernels.h"
#include "tests/integration/dataplane/crashing_program.h"
#include "tests/integration/dataplane/pool_rig.h"

namespace tributary::aggregator {
namespace {

RigOptions Impatient(PoolHierarchy hierarchy) {
  RigOptions options;
  options.workers = 2;
  options.elements = 4 * kBlockElements;
  options.counters = 2;
  options.arithmetic = Arithmetic::kFixedPoint;
  options.slots = 12;
  options.lane_capacity = 16;
  options.hierarchy = hierarchy;
  options.hang_patience = absl::Seconds(1);
  return options;
}

#ifdef TRIBUTARY_CRASH_POINTS
struct HungCase {
  const char* where;
  PoolShape shape;
};

class HungProcessTest : public ::testing::TestWithParam<HungCase> {};

TEST_P(HungProcessTest, IsReplacedAndTheSumsAreTheUndisturbedOnes) {
  // The first two processes stop, their replacements do not.
  const CrashingProgram program(GetParam().where, "0 1");
  RigOptions options = Impatient(GetParam().shape == PoolShape::kTree ? Tree(2) : Shape(GetParam().shape));
  options.program = program.path();
  PoolRig rig(options);
  rig.BeginRound(1, {.updates = 6, .leaves = {}});
  for (int i = 0; i < 6; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
  EXPECT_GE(rig.restarts(), 1u) << "nobody was stopped";
  EXPECT_EQ(rig.lost(), 0) << rig.reason();
  EXPECT_EQ(rig.folded(), 6u);
}

// Within a block, between two, with a descriptor taken and nothing done, and while it merges.
INSTANTIATE_TEST_SUITE_P(Points, HungProcessTest,
                         ::testing::Values(HungCase{"worker_in_block:2:stop", PoolShape::kShard}, HungCase{"worker_after_block:1:stop", PoolShape::kFlat},
                                           HungCase{"worker_before_fold:1:stop", PoolShape::kShard},
                                           HungCase{"worker_in_merge_block:1:stop", PoolShape::kTree}),
                         [](const auto& info) { return std::string(info.param.where, std::strchr(info.param.where, ':')); });
#endif

TEST(StoppedProcessTest, IsReplacedWhereverItWas) {
  PoolRig rig(Impatient(Shape(PoolShape::kShard)));
  for (int i = 0; i < 4; ++i) rig.FoldRandom();
  const std::vector<WorkerStatus> workers = rig.pool->Status();
  ASSERT_EQ(workers.size(), 2u);
  ASSERT_EQ(::kill(workers[0].pid, SIGSTOP), 0);
  for (int i = 0; i < 4; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
  EXPECT_EQ(rig.restarts(), 1u);
  EXPECT_NE(rig.pool->Status()[0].pid, workers[0].pid);
}

TEST(PatientProcessTest, AWorkerThatWaitsBecauseItsTimingSaysSoIsNotReplaced) {
  // Lazy: nothing is folded before the third update is there, which comes after three times the patience.
  PoolRig rig(Impatient(Timed(Tree(1), TimingKind::kLazy)));
  rig.BeginRound(1, {.updates = 3, .leaves = {3}});
  rig.FoldRandom();
  rig.FoldRandom();
  EXPECT_FALSE(rig.WaitFoldedBeyond(0, absl::Seconds(3))) << "it does not wait: the test shows nothing";
  EXPECT_EQ(rig.restarts(), 0u);
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
  EXPECT_EQ(rig.restarts(), 0u);
}

}  // namespace
}  // namespace tributary::aggregator
