#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <vector>

#include "tests/integration/coordinator/federation_fixture.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class CoordinatorTest : public FederationTest {};

bool IsCommitted(const v1::ServerMessage& message) { return message.has_update() && message.update().state() == v1::UPDATE_STATE_COMMITTED; }

TEST_F(CoordinatorTest, CommitsTheWeightedMeanOfThreeClients) {
  const std::string job = Submit("");
  std::vector<TestClient> clients = {Attach("a"), Attach("b"), Attach("c")};
  double sum = 0;
  double weights = 0;
  for (int i = 0; i < 3; ++i) {
    const v1::TrainTask task = AwaitTask(clients[i]);
    EXPECT_EQ(task.version(), 0u);
    const double weight = 1 + i;
    const float value = static_cast<float>(0.5 + i);
    ASSERT_THAT(Send(MakeUpdate(clients[i], task, value, weight, 5 * i)), IsOk());
    sum += weight * value;
    weights += weight;
  }
  for (TestClient& client : clients) {
    const auto committed = client.sink->Await(IsCommitted, &client.read);
    ASSERT_TRUE(committed.has_value());
    EXPECT_EQ(committed->update().version(), 1u);
  }
  AwaitState(job, v1::JOB_STATE_DONE);
  const float mean = static_cast<float>(sum / weights);
  EXPECT_EQ(Value(job, "w", 0, 1), mean);
  EXPECT_EQ(Value(job, "w", kWeights - 1, 1), mean);
  EXPECT_EQ(Value(job, "b", 2, 1), mean);
  EXPECT_EQ(Value(job, "mean", 1, 1), mean);
  const auto shown = coordinator_->GetJob(job);
  ASSERT_THAT(shown, IsOk());
  EXPECT_EQ(shown->updates_committed(), 3u);
  ASSERT_EQ(shown->rounds_size(), 1);
  EXPECT_GT(shown->rounds(0).aggregate_s(), 0);
  EXPECT_GE(shown->rounds(0).commit_s(), shown->rounds(0).aggregate_s());
  v1::GetVersionRequest request;
  request.set_job(job);
  request.set_latest(true);
  const auto version = coordinator_->GetVersion(request);
  ASSERT_THAT(version, IsOk());
  EXPECT_EQ(version->contributors_size(), 3);
  EXPECT_EQ(version->sha256(), shown->model_sha256());
  EXPECT_THAT(coordinator_->ExportVersion(request), IsOk());
}

TEST_F(CoordinatorTest, RunsSeveralVersionsWithFewerClientsThanAreAttached) {
  const std::string job = Submit("", /*cohort=*/2, /*versions=*/5);
  std::vector<TestClient> clients = {Attach("a"), Attach("b"), Attach("c")};
  EXPECT_TRUE(Until([&] {
    for (TestClient& client : clients) {
      while (client.sink->Count([](const v1::ServerMessage& m) { return m.has_train(); }) > client.read) {
        size_t at = 0;
        std::optional<v1::ServerMessage> task;
        for (size_t i = 0; i <= client.read; ++i) task = client.sink->Await([](const v1::ServerMessage& m) { return m.has_train(); }, &at);
        ++client.read;
        static_cast<void>(Send(MakeUpdate(client, task->train(), 1)));
      }
    }
    return coordinator_->GetJob(job)->state() == v1::JOB_STATE_DONE;
  }));
  EXPECT_EQ(Value(job, "w", 7, 5), 5.0f);
  EXPECT_EQ(coordinator_->GetJob(job)->updates_committed(), 10u);
}

TEST_F(CoordinatorTest, AnswersTheSameUpdateTwiceAndRefusesItsImpostors) {
  const std::string job = Submit("", 2);
  TestClient a = Attach("a");
  TestClient b = Attach("b");
  const v1::TrainTask task = AwaitTask(a);
  const Upload first = MakeUpdate(a, task, 1);
  ASSERT_THAT(Send(first), IsOk());
  EXPECT_THAT(Send(first), IsOk());  // idempotent
  EXPECT_EQ(Query(first).state(), v1::UPDATE_STATE_ACCEPTED);
  Upload other_bytes = MakeUpdate(a, task, 2);
  other_bytes.header.key.update = first.header.key.update;
  EXPECT_THAT(Send(other_bytes), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(Send(MakeUpdate(a, task, 3)), StatusIs(absl::StatusCode::kAlreadyExists));  // a second id for one task
  Upload stolen = MakeUpdate(b, task, 4);
  EXPECT_THAT(Send(stolen), StatusIs(absl::StatusCode::kPermissionDenied));
  ASSERT_THAT(Send(MakeUpdate(b, AwaitTask(b), 3)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 1), 2.0f);
  EXPECT_EQ(Query(first).state(), v1::UPDATE_STATE_COMMITTED);
  EXPECT_EQ(Query(first).version(), 1u);
}

// As an upload does that began before its client knew the digest.
TEST_F(CoordinatorTest, ADigestThatComesWithTheBytesCountsAsOneThatCameBefore) {
  const std::string job = Submit("", 1);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  const Upload update = MakeUpdate(a, task, 3);
  UpdateHeader unknown = update.header;
  unknown.xxh3_128.clear();
  absl::Duration retry;
  TRIB_ASSERT_OK_AND_ASSIGN(UpdateAdmission early, coordinator_->AdmitUpload(unknown, &retry));
  EXPECT_EQ(early.state, v1::UPDATE_STATE_PARTIAL);
  early.grant = {};                   // the pool of a cohort of one has one slot
  ASSERT_THAT(Send(update), IsOk());  // the same upload, now with its digest
  Upload other_bytes = MakeUpdate(a, task, 2);
  other_bytes.header.key.update = update.header.key.update;
  EXPECT_THAT(Send(other_bytes), StatusIs(absl::StatusCode::kAlreadyExists));
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 1), 3.0f);
  EXPECT_THAT(Send(other_bytes), StatusIs(absl::StatusCode::kAlreadyExists));  // the store knows it by its digest
  TRIB_ASSERT_OK_AND_ASSIGN(const UpdateAdmission known, coordinator_->AdmitUpload(unknown, &retry));
  EXPECT_EQ(known.state, v1::UPDATE_STATE_COMMITTED);
}

TEST_F(CoordinatorTest, RefusesWhatTheHeaderShowsToBeWrong) {
  const std::string job = Submit("", 1);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  Upload bad = MakeUpdate(a, task, 1);
  bad.header.job = "nobody-000000";
  EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kNotFound, HasSubstr("nobody-000000")));
  bad = MakeUpdate(a, task, 1);
  bad.header.version = 7;
  EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kFailedPrecondition));
  bad = MakeUpdate(a, task, 1);
  bad.header.layout[0] = bad.header.layout[0] == '0' ? '1' : '0';
  EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layout")));
  bad = MakeUpdate(a, task, 1);
  bad.header.bytes -= 4;
  EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("size")));
  for (const double weight : {0.0, -1.0, 1e300, std::numeric_limits<double>::infinity(), std::nan("")}) {
    bad = MakeUpdate(a, task, 1, weight);
    EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight"))) << weight;
  }
  bad = MakeUpdate(a, task, std::nanf(""));
  EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Query(bad).state(), v1::UPDATE_STATE_REJECTED);
  ASSERT_THAT(Send(MakeUpdate(a, task, 2)), IsOk());  // the task is still good for an honest update
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 1), 2.0f);
  const auto shown = coordinator_->GetJob(job);
  EXPECT_EQ(shown->updates_rejected().at("non_finite"), 1u);
  EXPECT_EQ(shown->updates_rejected().at("header"), 7u);
}

TEST_F(CoordinatorTest, GivesTheTaskToAnotherClientWhenOneSendsOnlyPoison) {
  options_.refused_grace = absl::Milliseconds(50);
  Stop();
  Start();
  const std::string job = Submit("", 1);
  TestClient bad = Attach("a");
  const v1::TrainTask task = AwaitTask(bad);
  TestClient good = Attach("b");
  EXPECT_THAT(Send(MakeUpdate(bad, task, std::numeric_limits<float>::infinity())), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(Send(MakeUpdate(good, AwaitTask(good), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
}

TEST_F(CoordinatorTest, RefusesALateUpdateOfACommittedVersion) {
  const std::string job = Submit("", 1, 2);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  TestClient b = Attach("b");
  ASSERT_THAT(Send(MakeUpdate(a, task, 1)), IsOk());
  ASSERT_TRUE(a.sink->Await(IsCommitted, &a.read).has_value());
  Upload late = MakeUpdate(a, task, 5);
  const absl::Status status = Send(late);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(Query(late).state(), v1::UPDATE_STATE_EXPIRED);
  EXPECT_GE(coordinator_->GetJob(job)->updates_rejected().at("expired"), 1u);
}

TEST_F(CoordinatorTest, ResumesAnOpenRoundAfterARestart) {
  const std::string job = Submit("durability: ephemeral\n", 2, 2);
  TestClient a = Attach("a");
  TestClient b = Attach("b");
  std::vector<Upload> sent;
  for (TestClient* client : {&a, &b}) {
    sent.push_back(MakeUpdate(*client, AwaitTask(*client), 1));
    ASSERT_THAT(Send(sent.back()), IsOk());
  }
  ASSERT_TRUE(a.sink->Await(IsCommitted, &a.read).has_value());
  const Upload open = MakeUpdate(a, AwaitTask(a), 3);
  ASSERT_THAT(Send(open), IsOk());
  EXPECT_EQ(Query(open).state(), v1::UPDATE_STATE_ACCEPTED);

  Stop();
  Start();
  EXPECT_EQ(coordinator_->GetJob(job)->version(), 1u);
  EXPECT_EQ(Value(job, "w", 0, 1), 1.0f);
  a = Attach("a", {Key(sent[0]), Key(open)});
  const auto welcome = a.sink->Await([](const v1::ServerMessage& m) { return m.has_welcome(); }, &a.read);
  ASSERT_TRUE(welcome.has_value());
  ASSERT_EQ(welcome->welcome().outbox_size(), 2);
  EXPECT_EQ(welcome->welcome().outbox(0).state(), v1::UPDATE_STATE_COMMITTED);
  EXPECT_EQ(welcome->welcome().outbox(1).state(), v1::UPDATE_STATE_UNKNOWN);
  ASSERT_THAT(Send(open), IsOk());  // the same task, id and bytes
  b = Attach("b");
  ASSERT_THAT(Send(MakeUpdate(b, AwaitTask(b), 5)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 2), 5.0f);  // 1 + (3 + 5) / 2
  EXPECT_EQ(coordinator_->GetJob(job)->updates_committed(), 4u);
  EXPECT_EQ(a.sink->Count([](const v1::ServerMessage& m) { return m.has_train(); }), 0u);
}

// Of this process: the workers.
std::vector<pid_t> Children() {
  std::vector<pid_t> pids;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(task.path() / "children");
    for (pid_t pid = 0; children >> pid;) pids.push_back(pid);
  }
  return pids;
}

TEST_F(CoordinatorTest, TheLastUpdateIsNotHeldForAJournalThatDoesNotCome) {
  options_.journal_every = absl::Milliseconds(300);
  Stop();
  Start();
  const std::string job = Submit("hierarchy: {timing: eager}\n", 4);
  std::vector<TestClient> clients = {Attach("a"), Attach("b"), Attach("c"), Attach("d")};
  std::vector<Upload> uploads;
  for (int i = 0; i < 4; ++i) uploads.push_back(MakeUpdate(clients[static_cast<size_t>(i)], AwaitTask(clients[static_cast<size_t>(i)]), static_cast<float>(i)));
  ASSERT_THAT(Send(uploads[0]), IsOk());
  ASSERT_TRUE(Until([&] { return Query(uploads[0]).state() == v1::UPDATE_STATE_JOURNALED; }));
  ASSERT_THAT(Send(uploads[1]), IsOk());
  absl::SleepFor(absl::Milliseconds(50));  // it is folded, and the next journal is to have it
  for (const pid_t worker : Children()) kill(worker, SIGSTOP);
  ASSERT_THAT(Send(uploads[2]), IsOk());
  absl::SleepFor(absl::Milliseconds(600));  // the journal is due and waits for the one that is being folded
  ASSERT_THAT(Send(uploads[3]), IsOk());    // all are in: the commit comes in the journal's place
  absl::SleepFor(absl::Milliseconds(50));
  for (const pid_t worker : Children()) kill(worker, SIGCONT);
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 1), 1.5f);
}

TEST_F(CoordinatorTest, KeepsJournalledUpdatesOverARestart) {
  options_.journal_every = absl::ZeroDuration();
  Stop();
  Start();
  const std::string job = Submit("reproducible: true\n", 2);
  TestClient a = Attach("a");
  const Upload first = MakeUpdate(a, AwaitTask(a), 0.1f, 3, 41);
  ASSERT_THAT(Send(first), IsOk());
  ASSERT_TRUE(Until([&] { return Query(first).state() == v1::UPDATE_STATE_JOURNALED; }));
  Stop();
  Start();
  EXPECT_EQ(Query(first).state(), v1::UPDATE_STATE_JOURNALED);
  a = Attach("a", {Key(first)});
  const auto welcome = a.sink->Await([](const v1::ServerMessage& m) { return m.has_welcome(); }, &a.read);
  ASSERT_TRUE(welcome.has_value());
  EXPECT_EQ(welcome->welcome().outbox(0).state(), v1::UPDATE_STATE_JOURNALED);
  EXPECT_EQ(coordinator_->GetJob(job)->clients_in(), 1u);
  TestClient b = Attach("b");
  ASSERT_THAT(Send(MakeUpdate(b, AwaitTask(b), 0.3f, 1, 7)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_NEAR(Value(job, "w", kWeights - 1, 1), (3 * 0.1 + 0.3) / 4, 1e-7);
  EXPECT_TRUE(a.sink->Await(IsCommitted, &a.read).has_value());
  EXPECT_EQ(Query(first).state(), v1::UPDATE_STATE_COMMITTED);
  EXPECT_EQ(coordinator_->GetJob(job)->updates_committed(), 2u);
  const auto model = coordinator_->Model("a", job, 1);
  int64_t seen = 0;
  std::memcpy(&seen, model->bytes.data() + layout_.Find("seen")->offset_bytes, 8);
  EXPECT_EQ(seen, 41);
}

TEST_F(CoordinatorTest, CancelsAndResumesFromTheLastVersion) {
  const std::string job = Submit("strategy: {name: fedavgm}\n", 1, 2);
  TestClient a = Attach("a");
  ASSERT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), IsOk());
  ASSERT_TRUE(a.sink->Await(IsCommitted, &a.read).has_value());
  const v1::TrainTask cancelled = AwaitTask(a);
  const auto shown = coordinator_->CancelJob(job, "no longer wanted");
  ASSERT_THAT(shown, IsOk());
  EXPECT_EQ(shown->state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(shown->state_reason(), "no longer wanted");
  ASSERT_TRUE(a.sink->Await([&](const v1::ServerMessage& m) { return m.has_cancel() && m.cancel().task() == cancelled.task(); }, &a.read).has_value());
  EXPECT_THAT(Send(MakeUpdate(a, cancelled, 1)), StatusIs(absl::StatusCode::kFailedPrecondition));
  Stop();
  Start();
  EXPECT_EQ(coordinator_->GetJob(job)->state(), v1::JOB_STATE_CANCELLED);
  ASSERT_THAT(coordinator_->ResumeJob(job), IsOk());
  a = Attach("a");
  ASSERT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_GT(Value(job, "w", 0, 2), 2.0f);  // the momentum of version 1 was kept
  EXPECT_THAT(coordinator_->ResumeJob(job), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(CoordinatorTest, WaitsForTheLastEvaluation) {
  const std::string job = Submit("", 1, 1);
  TestClient judge = Attach("judge", {}, /*trains=*/false, /*evaluates=*/true);
  TestClient a = Attach("a");
  ASSERT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), IsOk());
  const auto asked = judge.sink->Await([](const v1::ServerMessage& m) { return m.has_evaluate(); }, &judge.read);
  ASSERT_TRUE(asked.has_value());
  EXPECT_TRUE(Until([&] { return coordinator_->GetJob(job)->waiting_for().find("evaluation of version 1 by judge") != std::string::npos; }));
  EXPECT_EQ(coordinator_->GetJob(job)->state(), v1::JOB_STATE_RUNNING);
  v1::ClientMessage report;
  report.mutable_evaluation()->set_job(job);
  report.mutable_evaluation()->set_task(asked->evaluate().task());
  report.mutable_evaluation()->set_version(1);
  report.mutable_evaluation()->set_loss(0.25);
  report.mutable_evaluation()->set_accuracy(0.875);
  coordinator_->OnMessage(judge.session, report);
  AwaitState(job, v1::JOB_STATE_DONE);
  ASSERT_EQ(coordinator_->GetJob(job)->metrics_size(), 1);
  EXPECT_EQ(coordinator_->GetJob(job)->metrics(0).evaluator(), "judge");
}

TEST_F(CoordinatorTest, EndsAJobWhoseAccuracyIsReached) {
  v1::SubmitHeader header;
  std::vector<std::byte> flat(layout_.total_bytes());
  TRIB_ASSERT_OK_AND_ASSIGN(std::string tensors, SerializeSafetensors(layout_, flat));
  header.set_spec_yaml("name: accurate\nmodel: {tensors: m.safetensors}\ncohort: {size: 1}\nstop: {versions: 100, accuracy: 0.9}\n");
  header.set_tensors_bytes(tensors.size());
  TRIB_ASSERT_OK_AND_ASSIGN(const v1::SubmitJobResponse submitted, coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""));
  TestClient judge = Attach("judge", {}, false, true);
  TestClient a = Attach("a");
  ASSERT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), IsOk());
  const auto asked = judge.sink->Await([](const v1::ServerMessage& m) { return m.has_evaluate(); }, &judge.read);
  ASSERT_TRUE(asked.has_value());
  v1::ClientMessage report;
  report.mutable_evaluation()->set_job(submitted.job());
  report.mutable_evaluation()->set_task(asked->evaluate().task());
  report.mutable_evaluation()->set_version(1);
  report.mutable_evaluation()->set_accuracy(0.95);
  coordinator_->OnMessage(judge.session, report);
  AwaitState(submitted.job(), v1::JOB_STATE_DONE);
  EXPECT_THAT(coordinator_->GetJob(submitted.job())->state_reason(), HasSubstr("accuracy"));
  EXPECT_EQ(coordinator_->GetJob(submitted.job())->version(), 1u);
}

TEST_F(CoordinatorTest, OneClientServesTwoJobsOneTaskAtATime) {
  const std::string first = Submit("", 1);
  const std::string second = Submit("", 1);
  TestClient a = Attach("a");
  const v1::TrainTask one = AwaitTask(a);
  EXPECT_EQ(one.job(), first);
  EXPECT_EQ(a.sink->Count([](const v1::ServerMessage& m) { return m.has_train(); }), 1u);
  ASSERT_THAT(Send(MakeUpdate(a, one, 1)), IsOk());
  const v1::TrainTask two = AwaitTask(a);
  EXPECT_EQ(two.job(), second);
  ASSERT_THAT(Send(MakeUpdate(a, two, 1)), IsOk());
  AwaitState(first, v1::JOB_STATE_DONE);
  AwaitState(second, v1::JOB_STATE_DONE);
}

TEST_F(CoordinatorTest, ReattachingEndsTheOlderStreamAndSaysTheTaskAgain) {
  const std::string job = Submit("", 1);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  TestClient again = Attach("a");
  EXPECT_TRUE(a.sink->AwaitClosed());
  EXPECT_EQ(AwaitTask(again).task(), task.task());
  coordinator_->Detach(a.session);  // of the older stream: changes nothing
  ASSERT_THAT(Send(MakeUpdate(again, task, 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
}

TEST_F(CoordinatorTest, ASilentClientIsGoneAndItsTaskGoesToAnother) {
  options_.heartbeat = absl::Milliseconds(700);  // three of them are less than b may take for its update
  Stop();
  Start();
  const std::string job = Submit("", 1);
  TestClient silent = Attach("a");
  AwaitTask(silent);
  EXPECT_TRUE(silent.sink->AwaitClosed());
  TestClient b = Attach("b");
  ASSERT_THAT(Send(MakeUpdate(b, AwaitTask(b), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
}

TEST_F(CoordinatorTest, BindsAClientNameToItsFirstSecret) {
  EXPECT_THAT(coordinator_->Authenticate("site", "0123456789abcdef0123"), IsOk());
  EXPECT_THAT(coordinator_->Authenticate("site", "0123456789abcdef0123"), IsOk());
  EXPECT_THAT(coordinator_->Authenticate("site", "another-secret-000000"), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(coordinator_->Authenticate("../site", "0123456789abcdef0123"), StatusIs(absl::StatusCode::kInvalidArgument));
  Stop();
  Start();
  EXPECT_THAT(coordinator_->Authenticate("site", "another-secret-000000"), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(coordinator_->Authenticate("site", "0123456789abcdef0123"), IsOk());
}

TEST_F(CoordinatorTest, RefusesAJobWhoseModelIsNotFiniteOrWhoseStrategyOrPlacementIsUnknown) {
  std::vector<std::byte> flat(layout_.total_bytes());
  const float nan = std::nanf("");
  std::memcpy(flat.data() + layout_.Find("b")->offset_bytes, &nan, 4);
  TRIB_ASSERT_OK_AND_ASSIGN(std::string tensors, SerializeSafetensors(layout_, flat));
  v1::SubmitHeader header;
  header.set_spec_yaml("name: x\nmodel: {tensors: m.safetensors}\ncohort: {size: 1}\n");
  header.set_tensors_bytes(tensors.size());
  EXPECT_THAT(coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'b'")));
  std::fill(flat.begin(), flat.end(), std::byte{0});
  TRIB_ASSERT_OK_AND_ASSIGN(tensors, SerializeSafetensors(layout_, flat));
  header.set_spec_yaml("name: x\nmodel: {tensors: m.safetensors}\ncohort: {size: 1}\nstrategy: fedavgg\n");
  EXPECT_THAT(coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fedavgg")));
  header.set_spec_yaml("name: x\nmodel: {tensors: m.safetensors}\ncohort: {size: 1}\nhierarchy: {placement: bestfti}\n");
  EXPECT_THAT(coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("did you mean 'bestfit'")));
  EXPECT_TRUE(coordinator_->ListJobs().empty());
}

TEST_F(CoordinatorTest, DrainingTellsClientsAndTakesNothingMore) {
  const std::string job = Submit("", 2);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  coordinator_->Drain(absl::Seconds(5));
  EXPECT_TRUE(a.sink->Await([](const v1::ServerMessage& m) { return m.has_draining(); }, &a.read).has_value());
  EXPECT_THAT(Send(MakeUpdate(a, task, 1)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(CoordinatorTest, WatchersHearOfEveryVersionUntilTheirTokenDies) {
  const std::string job = Submit("", 1, 2);
  std::atomic<int> calls{0};
  auto token = coordinator_->Watch(job, [&] { ++calls; });
  ASSERT_THAT(token, IsOk());
  TestClient a = Attach("a");
  ASSERT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), IsOk());
  EXPECT_TRUE(Until([&] { return calls > 0; }));
  token->reset();
  const int before = calls;
  ASSERT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(calls, before);
}

}  // namespace
}  // namespace tributary::aggregator
