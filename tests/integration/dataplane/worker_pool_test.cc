// The worker pool with real worker processes: sums, refusals, rounds, resources, idleness.
#include "aggregator/coordinator/worker_pool.h"

#include <dirent.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "aggregator/core/kernels.h"
#include "tests/integration/dataplane/pool_rig.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

size_t CountFds(int pid) {
  size_t count = 0;
  DIR* dir = ::opendir(fmt::format("/proc/{}/fd", pid).c_str());
  if (dir == nullptr) return 0;
  while (::readdir(dir) != nullptr) ++count;
  ::closedir(dir);
  return count;
}

size_t CountMaps(int pid) {
  std::ifstream maps(fmt::format("/proc/{}/maps", pid));
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:tributary") != std::string::npos ? 1 : 0;
  return count;
}

// User + system time of a process, in clock ticks (10 ms).
long CpuTicks(int pid) {
  std::ifstream stat(fmt::format("/proc/{}/stat", pid));
  std::stringstream text;
  text << stat.rdbuf();
  std::istringstream fields(text.str().substr(text.str().rfind(')') + 2));
  std::string skip;
  for (int i = 0; i < 11; ++i) fields >> skip;
  long user = 0, system = 0;
  fields >> user >> system;
  return user + system;
}

struct SumCase {
  uint32_t workers;
  Arithmetic arithmetic;
};
std::ostream& operator<<(std::ostream& out, const SumCase& c) {
  return out << (c.arithmetic == Arithmetic::kFloat64 ? "fp64_" : "fixed_") << c.workers << "_workers";
}

class WorkerPoolSumsTest : public ::testing::TestWithParam<SumCase> {};

// The reference folds in this process, unsplit and unbatched: so 1, 2 and 4 workers give each other's bits too.
TEST_P(WorkerPoolSumsTest, EqualTheReferenceBitForBitOverSeveralRounds) {
  PoolRig rig({.workers = GetParam().workers, .elements = 3 * kBlockElements + 77, .counters = 3, .arithmetic = GetParam().arithmetic});
  for (uint32_t round = 1; round <= 3; ++round) {
    if (round > 1) rig.BeginRound(round);
    for (int i = 0; i < 30; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    ASSERT_EQ(rig.folded(), round * 30u);
    EXPECT_EQ(rig.objects->used_slots(), 0u);
    rig.ExpectSumsEqualReference();
  }
  EXPECT_EQ(rig.restarts(), 0u);
  EXPECT_EQ(rig.lost(), 0);
}

INSTANTIATE_TEST_SUITE_P(Workers, WorkerPoolSumsTest,
                         ::testing::Values(SumCase{1, Arithmetic::kFloat64}, SumCase{2, Arithmetic::kFloat64},
                                           SumCase{4, Arithmetic::kFloat64}, SumCase{1, Arithmetic::kFixedPoint},
                                           SumCase{2, Arithmetic::kFixedPoint}, SumCase{4, Arithmetic::kFixedPoint}),
                         ::testing::PrintToStringParamName());

TEST(WorkerPoolTest, TinyModelsAndModelsOfCountersOnlyWork) {
  for (const size_t elements : {size_t{0}, size_t{1}, size_t{5}}) {
    PoolRig rig({.workers = 4, .elements = elements, .counters = 2});
    for (int i = 0; i < 10; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    ASSERT_EQ(rig.folded(), 10u);
    rig.ExpectSumsEqualReference();
    TRIB_ASSERT_OK_AND_ASSIGN(const WorkerPool::Sums sums, rig.pool->ReadSums(PoolRig::kJob));
    EXPECT_EQ(sums.pieces.size(), 1u) << "one worker is enough for a model below one block";
  }
}

TEST(WorkerPoolTest, ANonFiniteUpdateIsRefusedAndItsNeighboursAreFolded) {
  PoolRig rig({.elements = 1000, .counters = 1});
  std::set<UpdateId> bad;
  for (int i = 0; i < 60; ++i) {
    if (i % 7 == 3) {
      std::vector<float> floats(1000, 1.0f);
      floats[static_cast<size_t>(i)] = i % 2 ? kNan : std::numeric_limits<float>::infinity();
      const int64_t counter[] = {1'000'000};
      bad.insert(rig.Fold(floats, 1, counter, /*expect=*/false));
    } else {
      rig.FoldRandom();
    }
  }
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_EQ(rig.refused(), bad);
  EXPECT_THAT(rig.reason(), HasSubstr("not finite"));
  EXPECT_EQ(rig.lost(), 0);
  EXPECT_EQ(rig.objects->used_slots(), 0u);
  rig.ExpectSumsEqualReference();
}

TEST(WorkerPoolTest, AnObjectThatLiesIsRefusedByEveryWorkerAndNotCounted) {
  PoolRig rig({.workers = 2, .elements = 2 * kBlockElements, .slots = 16});
  const std::vector<float> floats(2 * kBlockElements, 1.0f);
  rig.FoldRandom();
  std::set<UpdateId> bad;
  for (const double weight : {std::nan(""), 0.0, -1.0, HUGE_VAL}) bad.insert(rig.Fold(floats, weight, {}, false));
  for (const size_t bytes : {size_t{0}, size_t{8}, rig.layout.total_bytes() - 1}) {
    WritableObject object = rig.objects->Reserve(bytes).value();
    object.header().weight = 1;
    const UpdateId id = RandomUpdateId();
    bad.insert(id);
    ASSERT_THAT(rig.pool->Fold(PoolRig::kJob, id, rig.objects->Publish(std::move(object))), IsOk());
  }
  {  // a key that names nothing
    const UpdateId id = RandomUpdateId();
    bad.insert(id);
    ASSERT_THAT(rig.pool->Fold(PoolRig::kJob, id, {PackLocator({2, 77, 0}), 5}), IsOk());
  }
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitFoldedBeyond(1, absl::Seconds(60)));
  EXPECT_EQ(rig.refused(), bad);
  EXPECT_EQ(rig.lost(), 0);
  rig.ExpectSumsEqualReference();
}

TEST(WorkerPoolTest, AnUpdateThatPoisonsALaterBlockLosesTheRoundWhichCanBeginAgain) {
  PoolRig rig({.elements = 3 * kBlockElements});
  for (int i = 0; i < 5; ++i) rig.FoldRandom();
  std::vector<float> floats(3 * kBlockElements, 1.0f);
  floats[2 * kBlockElements + 5] = kNan;
  rig.Fold(floats, 1, {}, false);
  ASSERT_TRUE(rig.WaitLost());
  EXPECT_THAT(rig.reason(), HasSubstr("not finite"));
  EXPECT_EQ(rig.objects->used_slots(), 0u);
  EXPECT_THAT(rig.pool->ReadSums(PoolRig::kJob), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("lost")));
  rig.FoldRandom();
  EXPECT_THAT(rig.last_status, StatusIs(absl::StatusCode::kFailedPrecondition));
  rig.ForgetEvents();
  rig.BeginRound(2);
  for (int i = 0; i < 12; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_EQ(rig.folded(), 12u);
  EXPECT_EQ(rig.lost(), 0);
  rig.ExpectSumsEqualReference();
}

TEST(WorkerPoolTest, AnUpdateThatOneWorkerRefusesAndAnotherFoldedLosesTheRound) {
  PoolRig rig({.workers = 2, .elements = 2 * kBlockElements});
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  std::vector<float> floats(2 * kBlockElements, 1.0f);
  floats[kBlockElements + 5] = kNan;  // the first block of the second worker
  rig.Fold(floats, 1, {}, false);
  ASSERT_TRUE(rig.WaitLost());
  EXPECT_THAT(rig.reason(), HasSubstr("refused by 1 of 2 workers"));
  EXPECT_TRUE(rig.refused().empty());
  rig.ForgetEvents();
  rig.BeginRound(2);
  for (int i = 0; i < 5; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  rig.ExpectSumsEqualReference();
}

TEST(WorkerPoolTest, FixedPointRefusesAValueOutOfRangeByName) {
  PoolRig rig({.elements = 10, .arithmetic = Arithmetic::kFixedPoint});
  rig.FoldRandom();
  const UpdateId bad = rig.Fold(std::vector<float>(10, 1e30f), 1, {}, false);
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_THAT(rig.refused(), ::testing::ElementsAre(bad));
  rig.ExpectSumsEqualReference();
}

TEST(WorkerPoolTest, RestoredSumsAreFoldedOn) {
  for (const uint32_t workers : {1u, 3u}) {
    PoolRig rig({.workers = workers, .elements = 4 * kBlockElements, .counters = 2});
    for (int i = 0; i < 6; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    const std::vector<std::byte> state = rig.State();
    TRIB_ASSERT_OK_AND_ASSIGN(const WorkerPool::Sums sums, rig.pool->ReadSums(PoolRig::kJob));
    const std::vector<int64_t> counters(sums.counters.begin(), sums.counters.end());
    ASSERT_THAT(rig.pool->BeginRound(PoolRig::kJob, 2), IsOk());
    EXPECT_THAT(rig.pool->ReadSums(PoolRig::kJob), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("nothing was folded")));
    EXPECT_THAT(rig.pool->WriteSums(PoolRig::kJob, std::span(state).first(8), counters), StatusIs(absl::StatusCode::kInvalidArgument));
    ASSERT_THAT(rig.pool->WriteSums(PoolRig::kJob, state, counters), IsOk());
    rig.ExpectSumsEqualReference();
    for (int i = 0; i < 6; ++i) rig.FoldRandom();
    ASSERT_TRUE(rig.WaitSettled());
    rig.ExpectSumsEqualReference();
  }
}

TEST(WorkerPoolTest, MoreUpdatesThanTheLaneHoldsWaitInTheQueue) {
  PoolRig rig({.workers = 2, .elements = 2 * kBlockElements, .slots = 40, .lane_capacity = 2});
  for (int i = 0; i < 120; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  EXPECT_EQ(rig.folded(), 120u);
  rig.ExpectSumsEqualReference();
}

TEST(WorkerPoolTest, NamesWhatIsMissingOrWrong) {
  EXPECT_THAT(WorkerPool::Start({.worker_program = "/nonexistent/tributary-worker"}, {}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/tributary-worker")));
  EXPECT_THAT(WorkerPool::Start({.worker_program = WORKER_PROGRAM, .workers = 0}, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(WorkerPool::Start({.worker_program = WORKER_PROGRAM, .lane_capacity = 3}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  PoolRig rig({});
  EXPECT_THAT(rig.pool->BeginRound(99, 1), StatusIs(absl::StatusCode::kNotFound, HasSubstr("99")));
  EXPECT_THAT(rig.pool->OpenJob({.job = 5, .strategy = "fedawg", .layout = rig.layout}, rig.objects.get()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("fedavg")));
  EXPECT_THAT(rig.pool->OpenJob({.job = PoolRig::kJob, .strategy = "fedavg", .layout = rig.layout}, rig.objects.get()),
              StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST(WorkerPoolTest, ClosingAJobGivesBackEveryFdAndMappingHereAndInTheWorkers) {
  PoolRig rig({.workers = 2, .elements = 2 * kBlockElements});
  const auto snapshot = [&] {
    std::vector<size_t> counts = {CountFds(::getpid()), CountMaps(::getpid())};
    for (const WorkerStatus& worker : rig.pool->Status()) {
      counts.push_back(CountFds(worker.pid));
      counts.push_back(CountMaps(worker.pid));
    }
    return counts;
  };
  rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  const auto before = snapshot();
  for (uint32_t job = 100; job < 130; ++job) {
    auto objects = ObjectPool::Create({.pool_id = 3, .slot_payload_bytes = rig.layout.total_bytes(), .pool_bytes = 1 << 22}).value();
    ASSERT_THAT(rig.pool->OpenJob({.job = job, .strategy = "fedavg", .layout = rig.layout}, objects.get()), IsOk());
    ASSERT_THAT(rig.pool->BeginRound(job, 1), IsOk());
    for (int i = 0; i < 3; ++i) {
      WritableObject object = objects->Reserve(rig.layout.total_bytes()).value();
      std::memset(object.payload().data(), 0, object.payload().size());
      object.header().weight = 1;
      ASSERT_THAT(rig.pool->Fold(job, RandomUpdateId(), objects->Publish(std::move(object))), IsOk());
    }
    rig.pool->CloseJob(job);  // also with updates under way
    EXPECT_EQ(objects->used_slots(), 0u);
  }
  // The workers close when they come to it.
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (snapshot() != before && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(snapshot(), before);
  for (int i = 0; i < 5; ++i) rig.FoldRandom();
  rig.ForgetEvents();
}

TEST(WorkerPoolTest, ParkedWorkersUseNoCpu) {
  PoolRig rig({.workers = 4, .elements = 4 * kBlockElements});
  for (int i = 0; i < 5; ++i) rig.FoldRandom();
  ASSERT_TRUE(rig.WaitSettled());
  long before = 0, after = 0;
  for (const WorkerStatus& worker : rig.pool->Status()) before += CpuTicks(worker.pid);
  const absl::Time end = absl::Now() + absl::Seconds(3);
  absl::SleepFor(end - absl::Now());  // the measured interval itself
  for (const WorkerStatus& worker : rig.pool->Status()) after += CpuTicks(worker.pid);
  EXPECT_LE(after - before, 2) << "ticks of 10 ms, 4 workers over 3 s";
}

}  // namespace
}  // namespace tributary::aggregator
