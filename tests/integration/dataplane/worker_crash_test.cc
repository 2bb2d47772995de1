// kill -9 of workers at every named point and at random moments: nothing lost, nothing counted twice, the same bits.
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <thread>

#include "aggregator/core/kernels.h"
#include "tests/integration/dataplane/pool_rig.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;

#ifdef TRIBUTARY_CRASH_POINTS
// Set for the workers to come; this process passes none of the workers' points.
class CrashAt {
 public:
  explicit CrashAt(const std::string& where) { ::setenv("TRIBUTARY_CRASH", where.c_str(), 1); }
  ~CrashAt() { ::unsetenv("TRIBUTARY_CRASH"); }
};

struct CrashCase {
  const char* where;  // every worker process dies at this passage; the passage leaves room for some progress in each life
  Arithmetic arithmetic;
  uint32_t workers;
};
std::ostream& operator<<(std::ostream& out, const CrashCase& c) {
  std::string where = c.where;
  for (char& letter : where) letter = letter == ':' ? '_' : letter;
  return out << where << (c.arithmetic == Arithmetic::kFloat64 ? "_fp64_" : "_fixed_") << c.workers;
}

class WorkerCrashPointTest : public ::testing::TestWithParam<CrashCase> {};

TEST_P(WorkerCrashPointTest, SumsEqualTheUndisturbedOnesBitForBit) {
  const CrashAt crash(GetParam().where);
  PoolRig rig({.workers = GetParam().workers, .elements = 3 * kBlockElements + 5, .counters = 2, .arithmetic = GetParam().arithmetic,
               .slots = 3});
  for (int i = 0; i < 14; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_EQ(rig.lost(), 0) << rig.reason();
  EXPECT_EQ(rig.folded(), 14u);
  EXPECT_TRUE(rig.refused().empty());
  EXPECT_GE(rig.restarts(), 2u);
  EXPECT_EQ(rig.objects->used_slots(), 0u);
  rig.ExpectSumsEqualReference();
}

std::vector<CrashCase> AllCases() {
  std::vector<CrashCase> cases;
  for (const char* where : {"worker_before_fold:2", "worker_in_block:2", "worker_in_block:4", "worker_after_block:1", "worker_after_block:3",
                            "worker_before_done:1", "worker_after_done:1"}) {
    cases.push_back({where, Arithmetic::kFloat64, 1});
    cases.push_back({where, Arithmetic::kFixedPoint, 1});
    cases.push_back({where, Arithmetic::kFloat64, 2});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Points, WorkerCrashPointTest, ::testing::ValuesIn(AllCases()), ::testing::PrintToStringParamName());

TEST(WorkerCrashTest, AWorkerThatDiesAtTheSamePlaceEveryTimeLosesTheRoundInsteadOfLoopingForEver) {
  {
    const CrashAt crash("worker_in_block:1");
    PoolRig rig({.elements = 100});
    rig.FoldRandom();
    ASSERT_TRUE(rig.WaitLost());
    EXPECT_THAT(rig.reason(), HasSubstr("died 8 times"));
    EXPECT_EQ(rig.objects->used_slots(), 0u);
  }
}
#endif

struct KillPlan {
  Arithmetic arithmetic;
  uint32_t workers;
  size_t elements;
  uint32_t kills;
  uint32_t seed;
  int bad_every = 0;  // > 0: every so many updates, one that is not finite and has to be refused
};

// Random moments, random workers, real traffic. Most victims are allowed some progress first: eight deaths in a row without any
// would rightly lose the round.
void KillAtRandom(const KillPlan& plan) {
  PoolRig rig({.workers = plan.workers, .elements = plan.elements, .counters = 1, .arithmetic = plan.arithmetic, .slots = 6});
  const absl::Time start = absl::Now();
  std::atomic<bool> enough = false;
  std::jthread killer([&] {
    std::mt19937 random(plan.seed);
    uint32_t done = 0;
    while (done < plan.kills && rig.lost() == 0 && absl::Now() - start < absl::Seconds(100)) {
      if (random() % 4 != 0) rig.WaitFoldedBeyond(rig.folded(), absl::Seconds(5));
      absl::SleepFor(absl::Microseconds(random() % 3000));
      const WorkerStatus victim = rig.pool->Status()[random() % plan.workers];
      // The pid of a running child of ours, or 0 while there is none.
      if (victim.pid > 0 && ::kill(victim.pid, SIGKILL) == 0) ++done;
    }
    enough = true;
  });
  size_t good = 0;
  std::set<UpdateId> bad;
  std::vector<float> poison(plan.elements, 1.0f);
  poison[plan.elements / 2] = std::numeric_limits<float>::quiet_NaN();
  const int64_t counter[] = {1'000'000};
  for (size_t i = 1; !enough; ++i) {
    if (plan.bad_every != 0 && i % static_cast<size_t>(plan.bad_every) == 0) {
      bad.insert(rig.Fold(poison, 1, counter, /*expect=*/false));
    } else {
      rig.FoldRandom();
      ++good;
    }
  }
  killer.join();
  ASSERT_TRUE(rig.WaitSettled());
  ASSERT_EQ(rig.lost(), 0) << rig.reason() << " seed " << plan.seed;
  EXPECT_EQ(rig.folded(), good);
  EXPECT_EQ(rig.refused(), bad);
  EXPECT_GE(rig.restarts(), plan.kills / 2);  // some signals hit a process that was dying already
  rig.ExpectSumsEqualReference();
  std::printf("%u kills, %u restarts, %zu updates and %zu bad ones in %.1f s\n", plan.kills, rig.restarts(), good, bad.size(),
              absl::ToDoubleSeconds(absl::Now() - start));
}

constexpr size_t kSixBlocks = 6 * kBlockElements + 3;

TEST(WorkerCrashTest, RandomKillsChangeNoBitOfFixedPointSums) {
  KillAtRandom({.arithmetic = Arithmetic::kFixedPoint, .workers = 2, .elements = kSixBlocks, .kills = 150, .seed = 1});
}
TEST(WorkerCrashTest, RandomKillsChangeNoBitOfFloatSumsInTheSameOrder) {
  KillAtRandom({.arithmetic = Arithmetic::kFloat64, .workers = 1, .elements = kSixBlocks, .kills = 150, .seed = 2});
}
TEST(WorkerCrashTest, RandomKillsNeitherCountABadUpdateNorRefuseAGoodOne) {
  KillAtRandom({.arithmetic = Arithmetic::kFloat64, .workers = 1, .elements = 5000, .kills = 100, .seed = 3, .bad_every = 5});
}

}  // namespace
}  // namespace tributary::aggregator
