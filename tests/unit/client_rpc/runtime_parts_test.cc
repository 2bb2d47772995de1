#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "client/core/train_seed.h"
#include "client/rpc/client_runtime.h"
#include "client/rpc/ready_tasks.h"
#include "client/rpc/upload.h"
#include "client/rpc/work.h"
#include "client/rpc/worker_pool.h"
#include "proto/codec.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

TEST(IdentityNamesTest, OneIdentityHasTheNameItself) {
  EXPECT_THAT(IdentityNames("site", 1), ElementsAre("site"));
  EXPECT_THAT(IdentityNames("site", 3), ElementsAre("site-0", "site-1", "site-2"));
}

TEST(VerdictTest, StatesKeepTheirMeaning) {
  v1::UpdateStatus status;
  status.set_state(v1::UPDATE_STATE_COMMITTED);
  status.set_version(9);
  EXPECT_EQ(VerdictFromProto(status).state, UpdateState::kCommitted);
  EXPECT_EQ(VerdictFromProto(status).version, 9u);
  status.set_state(v1::UPDATE_STATE_REJECTED);
  status.set_reason("norm");
  EXPECT_EQ(VerdictFromProto(status).reason, "norm");
}

TEST(VerdictTest, StateOfALaterReleaseKeepsTheBytes) {
  v1::UpdateStatus status;
  status.set_state(static_cast<v1::UpdateState>(77));
  EXPECT_EQ(VerdictFromProto(status).state, UpdateState::kUnknown);
}

TEST(OutboxKeyTest, GoesThroughTheWireUnchanged) {
  const OutboxKey key{"job-1", 42, UpdateId{1, 2}};
  TRIB_ASSERT_OK_AND_ASSIGN(const OutboxKey back, OutboxKeyFromProto(ToProto(key)));
  EXPECT_EQ(back, key);
  EXPECT_THAT(OutboxKeyFromProto({}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(TrainSeedTest, DependsOnEachPartAndOnNothingElse) {
  EXPECT_EQ(TrainSeed(1, "a", 2), TrainSeed(1, "a", 2));
  EXPECT_NE(TrainSeed(1, "a", 2), TrainSeed(2, "a", 2));
  EXPECT_NE(TrainSeed(1, "a", 2), TrainSeed(1, "b", 2));
  EXPECT_NE(TrainSeed(1, "a", 2), TrainSeed(1, "a", 3));
}

v1::JobInfo Info(const std::string& extra = "") {
  v1::JobInfo info;
  info.set_job("job-1");
  info.set_spec_yaml("name: j\nmodel: {tensors: m.safetensors}\ndata: {source: csv, path: /there}\ncohort: {size: 1}\n" + extra);
  v1::TensorSpec& tensor = *info.mutable_layout()->add_tensors();
  tensor.set_name("w");
  tensor.set_dtype(v1::DTYPE_F32);
  tensor.set_kind(v1::TENSOR_KIND_TRAINABLE);
  tensor.add_shape(4);
  return info;
}

TEST(JobBookTest, LearnsSizeAndReplacesTheDataPath) {
  JobBook book("/here");
  const auto job = book.Learn(Info());
  EXPECT_EQ(job->summary.problem, "");
  EXPECT_EQ(job->summary.update_bytes, 16u);
  EXPECT_FALSE(job->summary.torchscript);
  EXPECT_EQ(job->spec.data.path, "/here");
  EXPECT_EQ(book.Find("job-1"), job);
  EXPECT_EQ(book.Find("job-2"), nullptr);
}

TEST(JobBookTest, JobThatMakesNoSenseGetsAProblem) {
  JobBook book("");
  v1::JobInfo info = Info("nonsense: 1\n");
  EXPECT_THAT(book.Learn(info)->summary.problem, HasSubstr("nonsense"));
  info = Info();
  info.mutable_layout()->mutable_tensors(0)->set_dtype(v1::DTYPE_UNSPECIFIED);
  EXPECT_THAT(book.Learn(info)->summary.problem, HasSubstr("layout"));
}

class FixedLearner : public Learner {
 public:
  explicit FixedLearner(TrainResult result) : result_(std::move(result)) {}
  std::string device() const override { return "none"; }
  absl::StatusOr<TrainResult> Train(const TrainRequest&, const Dataset*) override { return result_; }
  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest&, const Dataset*) override { return EvaluateResult{}; }

 private:
  TrainResult result_;
};

absl::StatusOr<TrainResult> TrainWith(TrainResult result, bool cancelled = false) {
  JobBook book("");
  PreparedTask prepared;
  prepared.task = {Task::Kind::kTrain, "job-1", 1, 2, absl::InfiniteFuture()};
  prepared.job = book.Learn(Info());
  prepared.model = std::make_shared<FetchedObject>(16);
  const WorkContext context{{"c", ""}, 0, 1, std::make_shared<std::atomic<bool>>(cancelled)};
  FixedLearner learner(std::move(result));
  return Work::Train(context, prepared, learner, [](const DataRequest&) { return std::shared_ptr<const Dataset>(); }, [](float) {});
}

TEST(WorkTest, ResultOfTheWrongSizeOrWeightIsRefused) {
  TrainResult result;
  result.update.resize(12);
  result.weight = 1;
  EXPECT_THAT(TrainWith(result), StatusIs(absl::StatusCode::kInternal, HasSubstr("12 bytes")));
  result.update.resize(16);
  for (const double weight : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    result.weight = weight;
    EXPECT_THAT(TrainWith(result), StatusIs(absl::StatusCode::kInternal, HasSubstr("weight"))) << weight;
  }
}

TEST(WorkTest, MetricsThatAreNoNumberAreLeftOut) {
  TrainResult result;
  result.update.resize(16);
  result.weight = 1;
  result.metrics = {{"good", 1.0}, {"bad", std::nan("")}, {"", 2.0}};
  for (int i = 0; i < 100; ++i) result.metrics[fmt::format("m{}", i)] = i;
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult checked, TrainWith(result));
  EXPECT_THAT(checked.metrics, ::testing::Contains(Key("good")));
  EXPECT_THAT(checked.metrics, ::testing::Not(::testing::Contains(Key("bad"))));
  EXPECT_EQ(checked.metrics.size(), kMaxMetrics);
}

TEST(WorkTest, CancelledTaskGivesNoResult) {
  TrainResult result;
  result.update.resize(16);
  result.weight = 1;
  EXPECT_THAT(TrainWith(result, true), StatusIs(absl::StatusCode::kCancelled));
}

// A task of `job` for one identity, as its fetch leaves it.
ReadyTask ReadyOf(const std::shared_ptr<const Job>& job, size_t identity, Task::Kind kind = Task::Kind::kTrain) {
  PreparedTask prepared;
  prepared.task = {kind, job->summary.job, identity, 2, absl::InfiniteFuture()};
  prepared.job = job;
  return {identity, {}, std::move(prepared)};
}

std::vector<size_t> Identities(const std::vector<ReadyTask>& tasks) {
  std::vector<size_t> identities;
  for (const ReadyTask& task : tasks) identities.push_back(task.identity);
  return identities;
}

std::shared_ptr<const Job> JobCalled(const std::string& name) {
  v1::JobInfo info = Info();
  info.set_job(name);
  return JobBook("").Learn(info);
}

TEST(ReadyTasksTest, TasksOfAJobWaitForThoseOnTheirWayAndGoTogether) {
  const auto job = JobCalled("job-1");
  ReadyTasks ready;
  for (int i = 0; i < 4; ++i) ready.Expect("job-1");
  for (const size_t identity : {0U, 1U}) ready.Arrive("job-1", ReadyOf(job, identity));
  EXPECT_TRUE(ready.Take(8).empty());
  ready.Arrive("job-1", std::nullopt);  // a fetch that failed keeps nobody
  EXPECT_TRUE(ready.Take(8).empty());
  ready.Arrive("job-1", ReadyOf(job, 3));
  EXPECT_THAT(Identities(ready.Take(8)), ElementsAre(0, 1, 3));
  EXPECT_TRUE(ready.Take(8).empty());
}

TEST(ReadyTasksTest, NoMoreGoTogetherThanTheLearnerTakesAndNoneOfOtherJobs) {
  const auto first = JobCalled("job-1"), second = JobCalled("job-2");
  ReadyTasks ready;
  for (size_t i = 0; i < 6; ++i) ready.Arrive("", ReadyOf(i % 2 == 0 ? first : second, i));
  EXPECT_THAT(Identities(ready.Take(2)), ElementsAre(0, 2));
  EXPECT_THAT(Identities(ready.Take(2)), ElementsAre(1, 3));
  EXPECT_THAT(Identities(ready.Take(2)), ElementsAre(4));
  EXPECT_THAT(Identities(ready.Take(2)), ElementsAre(5));
}

TEST(ReadyTasksTest, EvaluationsAndLearnersOfOneTaskWaitForNobody) {
  const auto job = JobCalled("job-1");
  ReadyTasks ready;
  ready.Expect("job-1");
  ready.Arrive("", ReadyOf(job, 0));
  ready.Arrive("", ReadyOf(job, 1, Task::Kind::kEvaluate));
  ready.Arrive("", ReadyOf(job, 2, Task::Kind::kEvaluate));
  EXPECT_THAT(Identities(ready.Take(8)), ElementsAre(1));
  EXPECT_THAT(Identities(ready.Take(1)), ElementsAre(0)) << "a learner of one task takes it as it comes";
  EXPECT_THAT(Identities(ready.Take(8)), ElementsAre(2));
}

TEST(WorkerPoolTest, RunsInOrderAndDropsWhatHasNotBegun) {
  std::vector<int> ran;
  absl::Notification begun, go;
  {
    WorkerPool pool(1);
    pool.Submit([&](int thread) {
      ran.push_back(thread);
      begun.Notify();
      go.WaitForNotification();
    });
    pool.Submit([&](int) { ran.push_back(1); });
    begun.WaitForNotification();
    std::jthread opener([&] { go.Notify(); });
  }
  EXPECT_THAT(ran.front(), 0);
  EXPECT_LE(ran.size(), 2u);
}

TEST(RunClientTest, RefusesOptionsThatContradict) {
  ClientOptions options;
  options.server = "127.0.0.1:1";
  options.name = "c";
  options.identities = 3;
  options.shards = 4;
  options.first_shard = 2;
  EXPECT_THAT(RunClient(options, nullptr, nullptr, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shards")));
  options.first_shard = 1;
  options.trains = false;
  EXPECT_THAT(RunClient(options, nullptr, nullptr, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("train, evaluate")));
}

}  // namespace
}  // namespace tributary::client
