// A job's `hierarchy:` section, from its submission to the workers that carry it out.
#include <algorithm>
#include <map>

#include "tests/integration/coordinator/federation_fixture.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class HierarchyJobsTest : public FederationTest {
 protected:
  void Restart(uint32_t workers) {
    Stop();
    options_.workers.workers = workers;
    Start();
  }

  // Two versions of four updates each; the model's digest.
  std::string Run(const std::string& hierarchy) {
    const std::string job = Submit("reproducible: true\nhierarchy: " + hierarchy + "\n", /*cohort=*/4, /*versions=*/2);
    std::vector<TestClient> clients;
    for (const char* name : {"a", "b", "c", "d"}) clients.push_back(Attach(name));
    for (int version = 0; version < 2; ++version) {
      for (int i = 0; i < 4; ++i) {
        const v1::TrainTask task = AwaitTask(clients[i]);
        EXPECT_EQ(task.version(), static_cast<uint64_t>(version)) << hierarchy;
        EXPECT_THAT(Send(MakeUpdate(clients[i], task, 0.1f * static_cast<float>(i) + static_cast<float>(version) / 3, 1 + 7 * i, i)), IsOk());
      }
    }
    AwaitState(job, v1::JOB_STATE_DONE);
    for (const TestClient& client : clients) coordinator_->Detach(client.session);
    return coordinator_->GetJob(job)->model_sha256();
  }
};

TEST_F(HierarchyJobsTest, EveryShapeTimingAndWorkerCountGivesTheSameBits) {
  std::map<std::string, std::string> digests;
  for (const uint32_t workers : {1u, 2u, 4u}) {
    Restart(workers);
    for (const char* shape : {"flat", "shard", "tree"}) {
      for (const char* timing : {"eager", "lazy", "batch:4", "jit"}) {
        const std::string hierarchy = fmt::format("{{shape: {}, plan: \"static:2\", timing: \"{}\"}}", shape, timing);
        digests[fmt::format("{} workers, {}", workers, hierarchy)] = Run(hierarchy);
        ASSERT_FALSE(HasFailure()) << workers << " workers, " << hierarchy;
      }
    }
  }
  ASSERT_EQ(digests.size(), 36u);
  const std::string& first = digests.begin()->second;
  EXPECT_EQ(first.size(), 64u);
  for (const auto& [how, digest] : digests) EXPECT_EQ(digest, first) << how;
}

TEST_F(HierarchyJobsTest, ReuseAndThePlannersPeriodChangeNoBit) {
  Restart(4);
  const std::string reference = Run("{shape: flat}");
  EXPECT_EQ(Run("{shape: tree, plan: \"static:3\", reuse: off}"), reference);
  EXPECT_EQ(Run("{shape: tree, plan: {kind: ewma, period_s: 0.1}}"), reference);
  EXPECT_EQ(Run("{}"), reference);
}

TEST_F(HierarchyJobsTest, AStrategyThatNeedsAllUpdatesIsRefusedATreeWhenItIsSubmitted) {
  // No strategy of the table has the trait yet: the mean is given it.
  options_.find_strategy = [](std::string_view name) -> const StrategyEntry* {
    static const StrategyEntry entry = [] {
      StrategyEntry copy = *FindStrategy("fedavg");
      copy.trait = StrategyTrait::kNeedsAll;
      return copy;
    }();
    return name == "fedavg" ? &entry : nullptr;
  };
  Restart(2);
  const auto submit = [&](const std::string& hierarchy) {
    std::vector<std::byte> flat(layout_.total_bytes());
    std::string tensors = SerializeSafetensors(layout_, flat).value();
    v1::SubmitHeader header;
    header.set_spec_yaml("name: test\nmodel: {tensors: m.safetensors}\ncohort: {size: 2}\nstop: {versions: 1}\nhierarchy: " + hierarchy + "\n");
    header.set_tensors_bytes(tensors.size());
    return coordinator_->SubmitJob(header, std::make_unique<MemorySource>(std::move(tensors)), "").status();
  };
  EXPECT_THAT(submit("{shape: tree}"), StatusIs(absl::StatusCode::kInvalidArgument,
                                                AllOf(HasSubstr("hierarchy.shape"), HasSubstr("'fedavg' needs all updates at once"))));
  EXPECT_THAT(submit("{shape: flat, timing: eager}"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("hierarchy.timing")));
  EXPECT_TRUE(coordinator_->ListJobs().empty());
  EXPECT_THAT(submit("{}"), IsOk());
}

TEST_F(HierarchyJobsTest, LazyWorkersFoldWhatIsThereWhenTheDeadlinePasses) {
  for (const char* shape : {"flat", "shard", "tree"}) {
    std::vector<std::byte> flat(layout_.total_bytes());
    std::string tensors = SerializeSafetensors(layout_, flat).value();
    v1::SubmitHeader header;
    header.set_spec_yaml(fmt::format("name: late\nmodel: {{tensors: m.safetensors}}\ncohort: {{size: 3, quorum: 2, deadline_s: 0.4}}\n"
                                     "stop: {{versions: 1}}\nhierarchy: {{shape: {}, plan: \"static:2\", timing: lazy}}\n", shape));
    header.set_tensors_bytes(tensors.size());
    const absl::StatusOr<v1::SubmitJobResponse> submitted = coordinator_->SubmitJob(header, std::make_unique<MemorySource>(std::move(tensors)), "");
    ASSERT_THAT(submitted, IsOk());
    std::vector<TestClient> clients = {Attach("a"), Attach("b"), Attach("c")};
    for (int i = 0; i < 2; ++i) ASSERT_THAT(Send(MakeUpdate(clients[i], AwaitTask(clients[i]), static_cast<float>(1 + i))), IsOk());
    AwaitState(submitted->job(), v1::JOB_STATE_DONE);
    EXPECT_EQ(Value(submitted->job(), "w", 3, 1), 1.5f) << shape;
    for (const TestClient& client : clients) coordinator_->Detach(client.session);
  }
}

TEST_F(HierarchyJobsTest, AJournalIsNotWaitedForByLazyWorkers) {
  options_.journal_every = absl::Milliseconds(1);
  Restart(2);
  const std::string job = Submit("hierarchy: {shape: tree, plan: \"static:2\", timing: lazy}\n", /*cohort=*/3);
  std::vector<TestClient> clients = {Attach("a"), Attach("b"), Attach("c")};
  for (int i = 0; i < 3; ++i) {
    ASSERT_THAT(Send(MakeUpdate(clients[i], AwaitTask(clients[i]), static_cast<float>(i))), IsOk());
    if (i < 2) absl::SleepFor(absl::Milliseconds(30));  // many journal periods
  }
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 1), 1.0f);
}

TEST_F(HierarchyJobsTest, ATreeGoesOnWithAJournalledPartialAfterARestart) {
  for (const char* timing : {"eager", "lazy", "batch:4", "jit"}) {
    options_.journal_every = absl::Milliseconds(1);
    Restart(2);
    // Lazy workers fold nothing midway, so there is nothing to journal: their clients send everything again.
    const bool rests = std::string_view(timing) == "lazy" || std::string_view(timing) == "jit";
    const std::string job = Submit(fmt::format("reproducible: true\nhierarchy: {{shape: tree, plan: \"static:2\", timing: \"{}\"}}\n", timing), /*cohort=*/4);
    std::vector<TestClient> clients = {Attach("a"), Attach("b"), Attach("c"), Attach("d")};
    std::vector<Upload> uploads;
    for (int i = 0; i < 4; ++i) uploads.push_back(MakeUpdate(clients[i], AwaitTask(clients[i]), static_cast<float>(i)));
    for (int i = 0; i < 2; ++i) ASSERT_THAT(Send(uploads[i]), IsOk());
    if (!rests) {
      ASSERT_TRUE(Until([&] { return Query(uploads[0]).state() == v1::UPDATE_STATE_JOURNALED && Query(uploads[1]).state() == v1::UPDATE_STATE_JOURNALED; })) << timing;
    }
    Restart(2);
    for (int i = 0; i < 4; ++i) clients[i] = Attach(clients[i].name, {Key(uploads[i])});
    for (int i = rests ? 0 : 2; i < 4; ++i) ASSERT_THAT(Send(uploads[i]), IsOk()) << timing;
    AwaitState(job, v1::JOB_STATE_DONE);
    EXPECT_EQ(Value(job, "w", 11, 1), 1.5f) << timing;
    EXPECT_EQ(coordinator_->GetJob(job)->updates_committed(), 4u) << timing;
  }
}

TEST_F(HierarchyJobsTest, TheNodeShowsTheTreeAsItStands) {
  Restart(3);
  const std::string job = Submit("hierarchy: {shape: tree, plan: \"static:2\", timing: lazy}\n", /*cohort=*/5, /*versions=*/2);
  std::vector<TestClient> clients;
  for (const char* name : {"a", "b", "c", "d", "e"}) clients.push_back(Attach(name));
  for (int i = 0; i < 4; ++i) ASSERT_THAT(Send(MakeUpdate(clients[i], AwaitTask(clients[i]), 1)), IsOk());
  v1::Node node;
  // The first leaf has its three and may be the top by now, or its two; the other waits. Workers and jobs are not of the same instant.
  ASSERT_TRUE(Until([&] {
    node = coordinator_->GetNode();
    const bool shown = std::any_of(node.workers().begin(), node.workers().end(), [](const v1::Worker& worker) { return worker.role() == "top"; });
    return shown && node.jobs(0).promotions() == 1;
  })) << node.DebugString();
  ASSERT_EQ(node.jobs_size(), 1);
  EXPECT_EQ(node.jobs(0).job(), job);
  EXPECT_EQ(node.jobs(0).shape(), "tree");
  EXPECT_EQ(node.jobs(0).timing(), "lazy");
  EXPECT_EQ(node.jobs(0).plan(), "static:2");
  EXPECT_EQ(node.jobs(0).leaves(), 2u);
  ASSERT_EQ(node.workers_size(), 3);
  std::map<std::string, int> roles;
  uint64_t taken = 0, goal = 0;
  for (const v1::Worker& worker : node.workers()) {
    EXPECT_GT(worker.pid(), 0);
    ++roles[worker.role()];
    for (const v1::Seat& seat : worker.seats()) {
      EXPECT_EQ(seat.job(), job);
      taken += seat.taken();
      goal += seat.goal();
      if (seat.role() == "top") {
        EXPECT_EQ(seat.partials_goal(), 1u);
        EXPECT_EQ(seat.partials_taken(), 0u);
      }
    }
  }
  EXPECT_EQ(roles, (std::map<std::string, int>{{"top", 1}, {"leaf", 1}, {"parked", 1}}));
  EXPECT_EQ(taken, 4u);
  EXPECT_EQ(goal, 5u);
  ASSERT_THAT(Send(MakeUpdate(clients[4], AwaitTask(clients[4]), 1)), IsOk());
  ASSERT_TRUE(Until([&] { return coordinator_->GetJob(job)->version() == 1; }));
  node = coordinator_->GetNode();
  EXPECT_EQ(node.jobs(0).commits(), 1u);
  EXPECT_GT(node.jobs(0).commit_seconds(), 0);
  EXPECT_EQ(node.jobs(0).partials(), 1u);
  EXPECT_EQ(node.jobs(0).folded(), 5u);
}

// One leaf for every two updates before anything is known; afterwards for every two in hand, of which lone updates make one.
TEST_F(HierarchyJobsTest, TheLoadOfEarlierRoundsSetsTheLeavesOfLaterOnes) {
  Restart(4);
  const std::string job = Submit("hierarchy: {shape: tree, plan: {kind: ewma, period_s: 0.1, weight: 0}, timing: eager}\n", /*cohort=*/8, /*versions=*/3);
  std::vector<TestClient> clients;
  for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) clients.push_back(Attach(name));
  EXPECT_EQ(coordinator_->GetNode().jobs(0).leaves(), 4u);
  EXPECT_EQ(coordinator_->GetNode().jobs(0).max_leaves(), 4u);
  EXPECT_FALSE(coordinator_->GetNode().jobs(0).has_planned_load());
  for (TestClient& client : clients) {
    ASSERT_THAT(Send(MakeUpdate(client, AwaitTask(client), 1)), IsOk());
    // Alone: the next one comes when it is folded.
    ASSERT_TRUE(Until([&] {
      const v1::Node node = coordinator_->GetNode();
      return std::all_of(node.workers().begin(), node.workers().end(), [](const v1::Worker& worker) { return worker.queued() == 0; });
    }));
    absl::SleepFor(absl::Milliseconds(20));
  }
  ASSERT_TRUE(Until([&] { return coordinator_->GetJob(job)->version() == 1; }));
  const v1::Node node = coordinator_->GetNode();
  ASSERT_TRUE(node.jobs(0).has_planned_load());
  EXPECT_GE(node.jobs(0).planned_load(), 0.9) << "while anything is in hand at least one is";
  EXPECT_LE(node.jobs(0).planned_load(), 2.0);
  EXPECT_EQ(node.jobs(0).leaves(), 1u);
}

// The plan of a long round, made before anything was known, is made anew in it once a load is known.
TEST_F(HierarchyJobsTest, ARoundIsPlannedAnewOncePerPeriod) {
  Restart(4);
  const std::string job = Submit("reproducible: true\nhierarchy: {shape: tree, plan: {kind: ewma, period_s: 0.3, weight: 0}, timing: eager}\n", /*cohort=*/8);
  std::vector<TestClient> clients;
  for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) clients.push_back(Attach(name));
  ASSERT_EQ(coordinator_->GetNode().jobs(0).leaves(), 4u);
  v1::Node node;
  size_t sent = 0;
  // Lone updates until it is known that one leaf is enough for them.
  ASSERT_TRUE(Until([&] {
    if (sent < 3) {
      EXPECT_THAT(Send(MakeUpdate(clients[sent], AwaitTask(clients[sent]), static_cast<float>(sent))), IsOk());
      ++sent;
      absl::SleepFor(absl::Milliseconds(50));
    }
    node = coordinator_->GetNode();
    return node.jobs(0).has_planned_load() && node.jobs(0).replans() > 0 && node.jobs(0).leaves() < 4;
  })) << node.DebugString();
  uint64_t goal = 0, busy = 0;
  for (const v1::Worker& worker : node.workers()) {
    busy += worker.role() == "leaf" || worker.role() == "top" ? 1 : 0;
    for (const v1::Seat& seat : worker.seats()) goal += seat.goal();
  }
  EXPECT_EQ(goal, 8u);
  EXPECT_LT(busy, 4u) << "whoever is not needed any more is parked";
  for (; sent < clients.size(); ++sent) ASSERT_THAT(Send(MakeUpdate(clients[sent], AwaitTask(clients[sent]), static_cast<float>(sent))), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 5, 1), 3.5f);
  EXPECT_EQ(coordinator_->GetJob(job)->updates_committed(), 8u);
}

TEST_F(HierarchyJobsTest, TheNodeShowsWhichWorkersAreWarmAndWhichAreCold) {
  options_.workers.scale_period = absl::Milliseconds(20);
  Restart(3);
  v1::Node node = coordinator_->GetNode();
  for (const v1::Worker& worker : node.workers()) {
    EXPECT_EQ(worker.role(), "parked");
    EXPECT_GT(worker.pid(), 0);
  }
  const std::string job = Submit("hierarchy: {shape: tree, plan: \"static:1\", timing: eager}\n", /*cohort=*/2, /*versions=*/1000);
  std::vector<TestClient> clients = {Attach("a"), Attach("b")};
  ASSERT_TRUE(Until([&] {
    for (TestClient& client : clients) EXPECT_THAT(Send(MakeUpdate(client, AwaitTask(client), 1)), IsOk());
    node = coordinator_->GetNode();
    return node.worker_evictions() == 2;
  })) << node.DebugString();
  node = coordinator_->GetNode();
  ASSERT_EQ(node.workers_size(), 3);
  EXPECT_EQ(std::count_if(node.workers().begin(), node.workers().end(), [](const v1::Worker& worker) { return worker.role() == "cold"; }), 2);
  // Another job needs them all.
  Submit("hierarchy: {shape: shard}\n", /*cohort=*/1, /*versions=*/1);
  ASSERT_TRUE(Until([&] {
    node = coordinator_->GetNode();
    return std::all_of(node.workers().begin(), node.workers().end(), [](const v1::Worker& worker) { return worker.role() != "cold" && worker.pid() > 0; });
  })) << node.DebugString();
  EXPECT_EQ(node.worker_starts(), 2u);
}

TEST_F(HierarchyJobsTest, ACalibratedCapacityIsPlannedWith) {
  const auto capacity = [&](const char* shape) {
    return MeasuredCapacity{.layout = layout_.Fingerprint(), .strategy = "fedavg", .shape = shape, .workers = 2, .reproducible = false, .updates = 3, .measured_us = 1};
  };
  options_.capacities = CapacityBook({capacity("tree"), capacity("shard")});
  Restart(2);
  Submit("hierarchy: {shape: tree, plan: ewma}\n", /*cohort=*/5);
  Submit("hierarchy: {shape: shard}\n", /*cohort=*/3);
  Submit("hierarchy: {shape: flat}\n", /*cohort=*/5);
  const v1::Node node = coordinator_->GetNode();
  ASSERT_EQ(node.jobs_size(), 3);
  EXPECT_EQ(node.jobs(0).capacity(), 3);
  EXPECT_EQ(node.jobs(0).residual(), 3);
  EXPECT_EQ(node.jobs(0).overloads(), 2u) << "five at once are two too many";
  EXPECT_EQ(node.jobs(1).overloads(), 0u);
  EXPECT_FALSE(node.jobs(2).has_capacity()) << "flat was not measured";
}

}  // namespace
}  // namespace tributary::aggregator
