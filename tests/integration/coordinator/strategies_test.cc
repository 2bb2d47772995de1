// Strategies that need more of the daemon than sums: numbers of updates, updates kept whole, rows and participation per client, arrivals
// that commit, vectors that travel. Every one over a restart.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "client/core/eggroll_fitness.h"
#include "common/digest.h"
#include "tests/integration/coordinator/federation_fixture.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class StrategiesTest : public FederationTest {
 protected:
  // Sends `value` everywhere for the client's next task.
  Upload Answer(TestClient& client, float value, Scalars scalars = {}, double weight = 1) {
    Upload upload = MakeUpdate(client, AwaitTask(client), value, weight);
    upload.header.scalars = std::move(scalars);
    EXPECT_THAT(Send(upload), IsOk());
    return upload;
  }
  void AwaitVersion(const std::string& job, uint64_t version) {
    EXPECT_TRUE(Until([&] { return coordinator_->GetJob(job)->version() >= version; })) << coordinator_->GetJob(job)->DebugString();
  }
  void Restart() {
    Stop();
    Start();
  }
  v1::VersionInfo Latest(const std::string& job) {
    v1::GetVersionRequest request;
    request.set_job(job);
    request.set_latest(true);
    return coordinator_->GetVersion(request).value_or(v1::VersionInfo());
  }
};

TEST_F(StrategiesTest, FedNovaTakesItsNumberAndRefusesUpdatesWithoutItByName) {
  const std::string job = Submit("strategy: fednova", /*cohort=*/2);
  TestClient a = Attach("a"), b = Attach("b");
  const v1::TrainTask task = AwaitTask(a);
  Upload update = MakeUpdate(a, task, 6);
  EXPECT_THAT(Send(update), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'step_norm' is missing")));
  update.header.scalars = {{"step_norm", 3}, {"loss", 1}};
  EXPECT_THAT(Send(update), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'loss'")));
  update.header.scalars = {{"step_norm", -1}};
  EXPECT_THAT(Send(update), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("> 0")));
  update.header.scalars = {{"step_norm", 3}};
  ASSERT_THAT(Send(update), IsOk());
  Answer(b, 4, {{"step_norm", 1}});
  AwaitVersion(job, 1);
  EXPECT_EQ(Value(job, "w", 17, 1), 6.0f);  // mean norm 2, times the mean of 6/3 and 4/1
  EXPECT_EQ(Latest(job).contributors(0).scalars().at("step_norm"), 3);
}

TEST_F(StrategiesTest, QFedAvgMeasuresTheNormItselfOverTheTrainableElements) {
  const std::string job = Submit("strategy: {name: qfedavg, q: 1, lipschitz: 2}", /*cohort=*/2);
  TestClient a = Attach("a"), b = Attach("b");
  Answer(a, 0.01f, {{"initial_loss", 3}});
  Answer(b, 0.02f, {{"initial_loss", 1}});
  AwaitVersion(job, 1);
  const double n = kWeights + 3, x = 0.01f, y = 0.02f;
  const double numerator = 3 * 2 * x + 1 * 2 * y;
  const double denominator = 4 * n * x * x + 2 * 3 + 4 * n * y * y + 2 * 1;
  EXPECT_NEAR(Value(job, "w", 17, 1), numerator / denominator, 1e-8);
}

TEST_F(StrategiesTest, KrumKeepsUpdatesUntilTheCommitAndOverARestart) {
  const std::string job = Submit("strategy: {name: krum, byzantine: 1}", /*cohort=*/5, /*versions=*/2);
  options_.journal_every = absl::ZeroDuration();  // of the coordinator that comes next
  std::vector<TestClient> clients;
  for (const char* name : {"a", "b", "c", "d", "e"}) clients.push_back(Attach(name));
  const float values[] = {1, 1.5f, 1.25f, 900, 1.125f};
  for (int i = 0; i < 3; ++i) Answer(clients[i], values[i]);
  Restart();  // nothing of the three was journalled: they send again
  std::vector<v1::TrainTask> tasks;
  for (TestClient& client : clients) client = Attach(client.name);
  std::vector<Upload> journalled;
  for (int i = 0; i < 3; ++i) journalled.push_back(Answer(clients[i], values[i]));
  EXPECT_TRUE(Until([&] { return Query(journalled[2]).state() == v1::UPDATE_STATE_JOURNALED; }));
  Restart();
  for (size_t i = 0; i < clients.size(); ++i) clients[i] = Attach(clients[i].name);
  for (const Upload& upload : journalled) EXPECT_EQ(Query(upload).state(), v1::UPDATE_STATE_JOURNALED);
  for (int i = 3; i < 5; ++i) Answer(clients[i], values[i]);
  AwaitVersion(job, 1);
  EXPECT_EQ(Value(job, "w", kWeights - 1, 1), 1.125f);  // the nearest two: 1 and 1.25
  EXPECT_EQ(Value(job, "mean", 0, 1), 1.125f);
  for (int i = 0; i < 5; ++i) Answer(clients[i], 2);
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 5, 2), 3.125f);
}

TEST_F(StrategiesTest, KrumIsRefusedWhereItCannotBeServed) {
  v1::SubmitHeader header;
  const auto submit = [&](const std::string& yaml) {
    const std::string tensors = *SerializeSafetensors(layout_, std::vector<std::byte>(layout_.total_bytes()));
    header.set_spec_yaml("name: test\nmodel: {tensors: m.safetensors}\n" + yaml);
    header.set_tensors_bytes(tensors.size());
    return coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), "").status();
  };
  EXPECT_THAT(submit("strategy: {name: krum, byzantine: 2}\ncohort: {size: 6}\n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least 7")));
  EXPECT_THAT(submit("strategy: krum\ncohort: {size: 6}\nhierarchy: {shape: tree}\n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tree")));
  EXPECT_THAT(submit("strategy: krum\ncohort: {size: 100000}\n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the pool has 64 MiB")));
  EXPECT_THAT(submit("strategy: fedfix\ncohort: {size: 6}\n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("interval_s")));
}

TEST_F(StrategiesTest, FedAuKeepsParticipationWithTheVersions) {
  const std::string job = Submit("strategy: {name: fedau, clients: 2}", /*cohort=*/1, /*versions=*/6);
  TestClient a = Attach("a");
  Answer(a, 8);  // round 1: ω = 1, x = 8/2
  AwaitVersion(job, 1);
  AwaitTask(a);
  coordinator_->Detach(a.session);
  Restart();
  TestClient b = Attach("b");
  Answer(b, 8);  // round 2: b closes an interval of 2 afterwards
  AwaitVersion(job, 2);
  Answer(b, 8);  // round 3: ω = 2
  AwaitVersion(job, 3);
  EXPECT_EQ(Value(job, "w", 3, 3), 4 + 4 + 8.0f);
  AwaitTask(b);
  coordinator_->Detach(b.session);
  Restart();
  a = Attach("a");
  Answer(a, 8);  // round 4: ω = 1, closes an interval of 3: mean 2
  AwaitVersion(job, 4);
  Answer(a, 8);  // round 5: ω = 2
  AwaitVersion(job, 5);
  EXPECT_EQ(Value(job, "w", 3, 5), 16 + 4 + 8.0f);
  const v1::VersionInfo info = Latest(job);
  ASSERT_EQ(info.clients_size(), 2);
  EXPECT_EQ(info.clients(0).client(), "a");
  EXPECT_EQ(info.clients(0).interval_sum(), 1 + 3 + 1);
  EXPECT_EQ(info.clients(0).interval_count(), 3);
  EXPECT_EQ(info.clients(1).since(), 3);
}

TEST_F(StrategiesTest, MifaRowsAreReplacedInTheCommitsBatchAndSurviveARestart) {
  const std::string job = Submit("strategy: {name: mifa, clients: 2}", /*cohort=*/1, /*versions=*/4);
  TestClient a = Attach("a");
  Answer(a, 4);  // rows 4, 0
  AwaitVersion(job, 1);
  EXPECT_EQ(Value(job, "w", 0, 1), 2.0f);
  AwaitTask(a);
  coordinator_->Detach(a.session);
  Restart();
  TestClient b = Attach("b");
  Answer(b, 8);  // rows 4, 8
  AwaitVersion(job, 2);
  EXPECT_EQ(Value(job, "w", kWeights - 1, 2), 8.0f);
  Answer(b, 2);  // rows 4, 2
  AwaitVersion(job, 3);
  EXPECT_EQ(Value(job, "w", 7, 3), 11.0f);
  EXPECT_THAT(Latest(job).strategy_state(), ::testing::ElementsAre("row_sum"));
}

TEST_F(StrategiesTest, FedBuffCommitsFullBuffersOfStaleAndFreshUpdates) {
  const std::string job = Submit("strategy: {name: fedbuff, buffer: 2, staleness: {kind: hinge, a: 1, b: 0}}", /*cohort=*/3, /*versions=*/3);
  TestClient a = Attach("a"), b = Attach("b"), c = Attach("c");
  const v1::TrainTask slow = AwaitTask(c);
  Answer(a, 2);
  Answer(a, 4);  // restarted at once, for the same buffer
  AwaitVersion(job, 1);
  EXPECT_EQ(Value(job, "w", 0, 1), 3.0f);
  Answer(a, 2);
  ASSERT_THAT(Send(MakeUpdate(c, slow, 4)), IsOk());  // one commit old: weighs 1/2
  AwaitVersion(job, 2);
  EXPECT_EQ(Value(job, "w", 0, 2), 5.0f);
  const v1::VersionInfo info = Latest(job);
  ASSERT_EQ(info.contributors_size(), 2);
  EXPECT_EQ(info.contributors(1).client(), "c");
  EXPECT_EQ(info.contributors(1).staleness(), 1u);
  EXPECT_EQ(info.contributors(1).weight(), 0.5);
  Answer(c, 1);
  Answer(b, 1);  // from version 0 still: weighs 1/3
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_NEAR(Value(job, "w", 0, 3), 5.0 + (1 + 1.0 / 3) / 2, 1e-6);
}

TEST_F(StrategiesTest, FedAsyncMixesWithTheVersionThatTheUpdateStartedFrom) {
  const std::string job = Submit("strategy: {name: fedasync, alpha: 0.5, staleness: {kind: constant}}", /*cohort=*/2, /*versions=*/2);
  TestClient a = Attach("a"), b = Attach("b");
  const v1::TrainTask slow = AwaitTask(b);
  Answer(a, 8);
  AwaitVersion(job, 1);
  EXPECT_EQ(Value(job, "w", 0, 1), 4.0f);
  ASSERT_THAT(Send(MakeUpdate(b, slow, 2)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "w", 0, 2), 4 + 0.5f * (0 + 2 - 4));
}

TEST_F(StrategiesTest, FedFixCommitsAtTicks) {
  const std::string job = Submit("strategy: {name: fedfix, interval_s: 0.2, weight: none}", /*cohort=*/2, /*versions=*/2);
  TestClient a = Attach("a"), b = Attach("b");
  Answer(a, 4);
  AwaitVersion(job, 1);
  EXPECT_THAT(Latest(job).trigger(), HasSubstr("tick"));
  EXPECT_EQ(Value(job, "w", 0, 1), 2.0f);  // p = 1/2
  Answer(a, 4);
  Answer(b, 2);
  AwaitState(job, v1::JOB_STATE_DONE);
}

TEST_F(StrategiesTest, FitnessMakesAVersionOfTheOneBefore) {
  layout_ = *TensorLayout::Create({{.name = "w", .shape = {24}, .dtype = DType::kF32, .kind = TensorKind::kTrainable}});
  const std::string job = Submit("strategy: {name: eggroll, population: 8}\nlocal: {solver: eggroll}", /*cohort=*/2, /*versions=*/3);
  TestClient a = Attach("a"), b = Attach("b");
  size_t read = 0;
  const auto info = a.sink->Await([](const v1::ServerMessage& m) { return m.has_job(); }, &read);
  ASSERT_TRUE(info.has_value());
  ASSERT_EQ(info->job().fitness_bytes(), 2 * 8 + 4 * 4u);
  const TensorLayout fitness = *LayoutFromProto(info->job().update_layout());
  for (uint64_t version = 1; version <= 2; ++version) {
    for (TestClient* client : {&a, &b}) {
      const std::vector<float> values = {1, 2, client == &a ? 3.F : 0.F, static_cast<float>(version)};
      const auto bytes = std::as_bytes(std::span(values));
      ASSERT_THAT(Send(UploadOf(*client, AwaitTask(*client), fitness, {bytes.begin(), bytes.end()}, 1)), IsOk());
    }
    AwaitVersion(job, version);
  }
  const auto log = coordinator_->Fitness("a", job, 1, 2);
  ASSERT_THAT(log, IsOk());
  ASSERT_EQ(log->bytes.size(), info->job().fitness_bytes() + 16);
  const auto replay = client::FitnessReplay::Of(*ParseJobSpec(info->job().spec_yaml(), "test"), layout_, info->job().fitness_bytes());
  ASSERT_THAT(replay, IsOk());
  const auto bytes_of = [&](uint64_t version) {
    const SharedBytes model = *coordinator_->Model("a", job, version);
    return std::vector<std::byte>(model.bytes.begin(), model.bytes.end());
  };
  std::vector<std::byte> model = bytes_of(1);
  ASSERT_THAT(replay->Apply(log->bytes.first(info->job().fitness_bytes()), model), IsOk());
  EXPECT_EQ(model, bytes_of(2));
  EXPECT_NE(model, bytes_of(1));
  const std::string digest = Xxh3Digest(model);
  EXPECT_TRUE(std::ranges::equal(log->bytes.last(16), std::as_bytes(std::span(digest))));
  EXPECT_THAT(coordinator_->Fitness("a", job, 0, 2), StatusIs(absl::StatusCode::kNotFound, HasSubstr("not less than the model's 96")));
  EXPECT_THAT(coordinator_->Fitness("a", job, 2, 2), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(coordinator_->Fitness("a", job, 2, 3), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(coordinator_->Fitness("a", Submit(""), 0, 1), StatusIs(absl::StatusCode::kNotFound, HasSubstr("do not follow from fitness")));
}

TEST_F(StrategiesTest, ScaffoldSendsItsVectorDownAndTakesTwoUp) {
  const std::string job = Submit("strategy: {name: scaffold, uplink: full, clients: 4}\nlocal: {steps: 5, lr: 0.5}", /*cohort=*/2, /*versions=*/2);
  TestClient a = Attach("a"), b = Attach("b");
  size_t read = 0;
  const auto info = a.sink->Await([](const v1::ServerMessage& m) { return m.has_job(); }, &read);
  ASSERT_TRUE(info.has_value());
  EXPECT_THAT(info->job().version_vectors(), ::testing::ElementsAre("c"));
  EXPECT_TRUE(*LayoutFromProto(info->job().update_layout()) == *WithGroups(layout_, {"", "control"}));
  const auto two = [&](TestClient& client, float delta, float control) {
    Upload upload = MakeUpdate(client, AwaitTask(client), delta);
    upload.header.scalars = {{"state_version", 0}};
    const TensorLayout wide = *WithGroups(layout_, {"", "control"});
    const std::vector<std::byte> narrow = upload.bytes;
    const size_t trainable = layout_.trainable_count() * 4;
    upload.bytes.assign(narrow.begin(), narrow.begin() + static_cast<ptrdiff_t>(trainable));
    for (size_t i = 0; i < layout_.trainable_count(); ++i) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&control);
      upload.bytes.insert(upload.bytes.end(), bytes, bytes + 4);
    }
    upload.bytes.insert(upload.bytes.end(), narrow.begin() + static_cast<ptrdiff_t>(trainable), narrow.end());
    upload.header.layout = wide.Fingerprint();
    upload.header.bytes = upload.bytes.size();
    upload.header.xxh3_128 = Xxh3Digest(upload.bytes);
    return Send(upload);
  };
  const auto first = coordinator_->Vectors("a", job, 0);
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(first->bytes.size(), layout_.trainable_count() * 4);
  EXPECT_THAT(Send(MakeUpdate(a, AwaitTask(a), 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layout")));
  a.read = 0;
  ASSERT_THAT(two(a, 1, 6), IsOk());
  ASSERT_THAT(two(b, 3, 2), IsOk());
  AwaitVersion(job, 1);
  EXPECT_EQ(Value(job, "w", kWeights - 1, 1), 2.0f);
  EXPECT_EQ(Value(job, "mean", 0, 1), 2.0f);
  Restart();
  const auto vectors = coordinator_->Vectors("a", job, 1);
  ASSERT_THAT(vectors, IsOk());
  float c = 0;
  std::memcpy(&c, vectors->bytes.data() + vectors->bytes.size() - 4, 4);
  EXPECT_EQ(c, 2.0f);  // (6 + 2)/4
  EXPECT_GE(vectors->memfd, 0);  // clients of this host can map it
}

// scaffold with δ alone: c is the mean of the clients' states.
constexpr char kScaffold[] = "strategy: {name: scaffold, uplink: delta, clients: 2}\nlocal: {steps: 1, lr: 1}";

class ClientStateTest : public StrategiesTest {
 protected:
  Upload Control(TestClient& client, const v1::TrainTask& task, float delta, double state_version) {
    Upload upload = MakeUpdate(client, task, delta);
    upload.header.layout = WithGroups(layout_, {"control"})->Fingerprint();
    upload.header.scalars = {{"state_version", state_version}};
    return upload;
  }
  float C(const std::string& job, uint64_t version) {
    const auto vectors = coordinator_->Vectors("a", job, version);
    EXPECT_THAT(vectors, IsOk());
    float c = 0;
    if (vectors.ok()) std::memcpy(&c, vectors->bytes.data(), 4);
    return c;
  }
};

TEST_F(ClientStateTest, UpdatesStartFromTheStateOfTheLastCountedOneOrFromNone) {
  const std::string job = Submit(kScaffold, /*cohort=*/2, /*versions=*/3);
  TestClient a = Attach("a"), b = Attach("b");
  const v1::TrainTask first = AwaitTask(a);
  EXPECT_EQ(first.state_version(), 0u);
  Upload upload = Control(a, first, 6, 0);
  upload.header.scalars = {};
  EXPECT_THAT(Send(upload), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'state_version' is missing")));
  EXPECT_THAT(Send(Control(a, first, 6, .5)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected a version")));
  EXPECT_THAT(Send(Control(a, first, 6, 3)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("of version 3; expected that of version 0")));
  const Upload counted = Control(a, first, 6, 0);
  ASSERT_THAT(Send(counted), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), 2, 0)), IsOk());
  AwaitVersion(job, 1);
  EXPECT_EQ(C(job, 1), 4.0f);
  EXPECT_THAT(Send(counted), IsOk());  // a duplicate: counted already
  const Upload stale = Control(a, first, 100, 0);
  EXPECT_THAT(Send(stale), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("")));
  const v1::TrainTask second = AwaitTask(a);
  EXPECT_EQ(second.state_version(), 1u);
  EXPECT_THAT(Send(Control(a, second, 1, 2)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected that of version 1")));
  Upload bad = Control(a, second, std::nanf(""), 1);
  EXPECT_THAT(Send(bad), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NaN")));
  ASSERT_THAT(Send(Control(a, second, 1, 1)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), -3, 1)), IsOk());
  AwaitVersion(job, 2);
  EXPECT_EQ(C(job, 2), 4 + (1 - 3) / 2.0f);
  EXPECT_EQ(Latest(job).state_epoch(), 0u);
}

TEST_F(ClientStateTest, ALostStateBeginsANewEpochForAllInTheBatchOfItsVersion) {
  const std::string job = Submit(kScaffold, /*cohort=*/2, /*versions=*/4);
  TestClient a = Attach("a"), b = Attach("b");
  ASSERT_THAT(Send(Control(a, AwaitTask(a), 6, 0)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), 2, 0)), IsOk());
  AwaitVersion(job, 1);
  ASSERT_THAT(Send(Control(a, AwaitTask(a), 1, 1)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), 8, 0)), IsOk());  // its state is gone
  AwaitVersion(job, 2);
  EXPECT_EQ(C(job, 2), 0.0f);
  EXPECT_EQ(Latest(job).state_epoch(), 2u);
  Restart();
  a = Attach("a");
  b = Attach("b");
  const v1::TrainTask task = AwaitTask(a);
  EXPECT_EQ(task.state_version(), 0u);
  EXPECT_EQ(task.state_epoch(), 2u);
  EXPECT_THAT(Send(Control(a, task, 1, 2)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected that of version 0")));
  ASSERT_THAT(Send(Control(a, task, 4, 0)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), 2, 0)), IsOk());
  AwaitVersion(job, 3);
  EXPECT_EQ(C(job, 3), 3.0f);
  EXPECT_EQ(Latest(job).state_epoch(), 2u);
  EXPECT_EQ(AwaitTask(a).state_version(), 3u);
}

TEST_F(ClientStateTest, MirroredStatesAreRowsThatAddUpAndAreHandedBack) {
  const std::string job = Submit("strategy: {name: scaffold, uplink: delta, clients: 2, client_state: mirrored}\nlocal: {steps: 1, lr: 1}", /*cohort=*/2, /*versions=*/4);
  TestClient a = Attach("a"), b = Attach("b");
  size_t read = 0;
  const auto info = a.sink->Await([](const v1::ServerMessage& m) { return m.has_job(); }, &read);
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->job().mirrored_state(), "c_i");
  EXPECT_THAT(coordinator_->ClientRow("a", job), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_THAT(Send(Control(a, AwaitTask(a), 6, 0)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), 2, 0)), IsOk());
  AwaitVersion(job, 1);
  ASSERT_THAT(Send(Control(a, AwaitTask(a), 1, 1)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), -8, 1)), IsOk());
  AwaitVersion(job, 2);
  EXPECT_EQ(Value(job, "w", 0, 2), -4.0f - (4.0f + -3.5f));  // x − γ(mean δ + c), twice
  Restart();
  const auto row = [&](const char* client) {
    const auto bytes = coordinator_->ClientRow(client, job);
    EXPECT_THAT(bytes, IsOk());
    EXPECT_EQ(bytes->bytes.size(), layout_.trainable_count() * 4);
    float value = 0;
    std::memcpy(&value, bytes->bytes.data(), 4);
    return value;
  };
  EXPECT_EQ(row("a"), 7.0f);
  EXPECT_EQ(row("b"), -6.0f);
  EXPECT_EQ(C(job, 2), 0.5f);  // the mean of the rows
  a = Attach("a");
  b = Attach("b");
  EXPECT_EQ(AwaitTask(a).state_version(), 2u);
  a.read = 0;
  // One that has not even its row any more begins anew, and all with it; older rows then count for nothing.
  ASSERT_THAT(Send(Control(a, AwaitTask(a), 5, 0)), IsOk());
  ASSERT_THAT(Send(Control(b, AwaitTask(b), 1, 2)), IsOk());
  AwaitVersion(job, 3);
  EXPECT_EQ(C(job, 3), 0.0f);
  EXPECT_THAT(coordinator_->ClientRow("a", job), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(ClientStateTest, RerceSendsOneVectorInTheModelsPlace) {
  const std::string job = Submit("strategy: rerce_admm", /*cohort=*/1, /*versions=*/3);
  TestClient a = Attach("a");
  size_t read = 0;
  const auto info = a.sink->Await([](const v1::ServerMessage& m) { return m.has_job(); }, &read);
  ASSERT_TRUE(info.has_value());
  EXPECT_TRUE(info->job().vectors_in_model());
  EXPECT_TRUE(info->job().client_state());
  Answer(a, 4, {{"state_version", 0}});
  AwaitVersion(job, 1);
  const auto down = coordinator_->Vectors("a", job, 1);
  ASSERT_THAT(down, IsOk());
  ASSERT_EQ(down->bytes.size(), layout_.total_bytes());
  const auto at = [&](const char* name) {
    float value = 0;
    std::memcpy(&value, down->bytes.data() + layout_.Find(name)->offset_bytes, 4);
    return value;
  };
  EXPECT_EQ(at("w"), 8.0f);     // 2x − x⁻
  EXPECT_EQ(at("b"), 8.0f);
  EXPECT_EQ(at("mean"), 4.0f);  // the model's own
  Answer(a, 5, {{"state_version", 0}});  // lost: s begins as the model
  AwaitVersion(job, 2);
  const auto anew = coordinator_->Vectors("a", job, 2);
  ASSERT_THAT(anew, IsOk());
  float s = 0;
  std::memcpy(&s, anew->bytes.data(), 4);
  EXPECT_EQ(s, 5.0f);
}

TEST_F(StrategiesTest, LocalBuffersOfTheModelStayAsTheyAre) {
  for (const char* strategy : {"{name: fedavg, buffers: local}", "{name: median, buffers: local}"}) {
    const std::string job = Submit(std::string("strategy: ") + strategy, /*cohort=*/1, /*versions=*/1);
    TestClient a = Attach("a");
    Answer(a, 4);
    AwaitState(job, v1::JOB_STATE_DONE);
    EXPECT_EQ(Value(job, "w", 1, 1), 4.0f);
    EXPECT_EQ(Value(job, "mean", 1, 1), 0.0f);
    coordinator_->Detach(a.session);
  }
}

}  // namespace
}  // namespace tributary::aggregator
