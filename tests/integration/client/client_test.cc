// The client runtime against a server that fails at random: every update arrives exactly once, with equal bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>

#include "client/rpc/client_runtime.h"
#include "tests/integration/client/fake_server.h"
#include "tests/support/host_update.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tributary::testing::HostUpdate;
using tributary::testing::IsOk;

constexpr size_t kElements = 3001;  // 12,004 bytes: no multiple of any chunk size here

// Update bytes are a function of (client, version) and of the model that was fetched.
std::string ExpectedUpdate(const std::string& client, uint64_t version, const std::string& model) {
  std::string update = model;
  for (size_t i = 0; i < update.size(); ++i) update[i] = static_cast<char>(update[i] ^ static_cast<char>(client.back() + version * 3 + i));
  return update;
}

// What learners of GPUs do and others do not.
struct GpuWays {
  size_t cohort = 1;
  bool keeps_updates = false;            // on the "device"
  std::atomic<int> out_of_memory{0};     // so many trainings fail
  // What the device does between the two halves of an update; empty: it gives many small parts. An error is the device's.
  std::function<absl::Status()> between_halves;
  std::atomic<size_t> largest_cohort{0};
};

// Comes off its device in two halves.
class HalvesUpdate final : public DeviceUpdate {
 public:
  HalvesUpdate(std::string bytes, const std::function<absl::Status()>& between) : bytes_(std::move(bytes)), between_(between) {}
  size_t flat_bytes() const override { return bytes_.size(); }
  absl::StatusOr<double> Encode(const UpdatePlan&, const Sink& sink) override {
    const std::span<const std::byte> bytes = std::as_bytes(std::span(bytes_));
    const size_t half = bytes.size() / 2;
    TRIB_RETURN_IF_ERROR(sink(0, bytes.first(half)));
    TRIB_RETURN_IF_ERROR(between_());
    TRIB_RETURN_IF_ERROR(sink(half, bytes.subspan(half)));
    return 0.0;
  }
  double max_abs() const override { return 1; }
  absl::StatusOr<bool> Fold(std::span<const DeviceTerm>, bool, std::span<double>) override { return Unimplemented("not folded here"); }
  absl::StatusOr<bool> FoldFixed(std::span<const DeviceTerm>, bool, std::span<int64_t>) override { return Unimplemented("not folded here"); }

 private:
  const std::string bytes_;
  const std::function<absl::Status()>& between_;
};

class KnownLearner : public Learner {
 public:
  KnownLearner(std::atomic<bool>* hang, std::atomic<int>* begun, GpuWays* ways) : hang_(hang), begun_(begun), ways_(ways) {}
  std::string device() const override { return "cpu"; }
  std::optional<DeviceUsage> usage() const override { return DeviceUsage{.id = "GPU-1", .memory_used_bytes = 2, .memory_total_bytes = 8, .utilisation = 0.25}; }
  size_t cohort_size() const override { return ways_->cohort; }
  std::vector<absl::StatusOr<TrainResult>> TrainCohort(std::span<const CohortMember> members) override {
    ways_->largest_cohort = std::max(ways_->largest_cohort.load(), members.size());
    return Learner::TrainCohort(members);
  }
  absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset*) override {
    ++*begun_;
    if (ways_->out_of_memory > 0 && ways_->out_of_memory-- > 0) return ResourceExhausted("device memory: minibatches of 32 do not fit");
    while (hang_->load()) {
      if (!request.progress(0.5f)) return Cancelled("stopped");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const std::string model(reinterpret_cast<const char*>(request.model.data()), request.model.size());
    const std::string update = ExpectedUpdate(request.client, request.version, model);
    TrainResult result;
    if (ways_->keeps_updates && request.may_stay_on_device) {
      if (ways_->between_halves) {
        result.on_device = std::make_shared<HalvesUpdate>(update, ways_->between_halves);
      } else {
        result.on_device = std::make_shared<HostUpdate>(update);
      }
    } else {
      result.update.resize(update.size());
      std::memcpy(result.update.data(), update.data(), update.size());
    }
    result.weight = 1 + static_cast<double>(request.version);
    result.examples = 10;
    return result;
  }
  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest& request, const Dataset*) override {
    return EvaluateResult{0.25, 0.5, request.version};
  }

 private:
  std::atomic<bool>* hang_;
  std::atomic<int>* begun_;
  GpuWays* ways_;
};

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "trib-client-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    state_ = pattern;
  }
  void TearDown() override {
    StopClient();
    server_.reset();
    std::error_code ignored;
    fs::remove_all(state_, ignored);
  }
  void StartServer(FakeFaults faults, uint64_t rounds, uint32_t seed = 1, const std::string& model = "{tensors: m.safetensors}", const std::string& more = "") {
    auto layout = TensorLayout::Create({{"w", {static_cast<int64_t>(kElements)}, DType::kF32, TensorKind::kTrainable}});
    ASSERT_THAT(layout, IsOk());
    server_ = std::make_unique<FakeServer>(*layout, "name: j\nmodel: " + model + "\ncohort: {size: 1}\n" + more, faults, seed);
    server_->SetRounds(rounds);
    port_ = server_->Start();
    ASSERT_NE(port_, 0);
  }
  void StartClient(int identities, ClientOptions options = {}) {
    options.server = "127.0.0.1:" + std::to_string(port_);
    options.name = "c";
    options.identities = identities;
    options.state = state_;
    options.on_update = [this](const UpdateEvent& event) {
      absl::MutexLock lock(&mutex_);
      if (event.kind == UpdateEvent::Kind::kSettled) ++settled_;
      if (event.kind == UpdateEvent::Kind::kStored) ++stored_;
      if (event.kind == UpdateEvent::Kind::kStored && server_->Accepted(event.header.update)) ++accepted_before_stored_;
    };
    client_ = std::jthread([this, options](std::stop_token stop) {
      result_ = RunClient(
          options, [this]() -> absl::StatusOr<std::unique_ptr<Learner>> { return std::make_unique<KnownLearner>(&hang_, &begun_, &ways_); },
          [](const DataRequest&) -> absl::StatusOr<std::shared_ptr<const Dataset>> { return std::shared_ptr<const Dataset>(); }, stop);
    });
  }
  // Updates of so many bytes leave while they are made and stored.
  static ClientOptions Early(uint64_t bytes) {
    ClientOptions options;
    options.early_upload_bytes = bytes;
    return options;
  }
  void StopClient() {
    if (!client_.joinable()) return;
    client_.request_stop();
    client_.join();
    EXPECT_THAT(result_, IsOk());
  }
  // The learner has begun `count` trainings.
  bool WaitTraining(int count) {
    const absl::Time end = absl::Now() + absl::Seconds(30);
    while (begun_ < count && absl::Now() < end) absl::SleepFor(absl::Milliseconds(2));
    return begun_ >= count;
  }
  bool WaitSettled(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto done = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return settled_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&done), absl::Seconds(30));
  }
  bool WaitStored(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto done = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stored_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&done), absl::Seconds(30));
  }
  size_t OutboxEntries() {
    size_t entries = 0;
    for (const auto& client : fs::directory_iterator(state_)) {
      if (!fs::exists(client.path() / "outbox")) continue;
      for ([[maybe_unused]] const auto& entry : fs::directory_iterator(client.path() / "outbox")) ++entries;
    }
    return entries;
  }
  void ExpectToSurviveEverything(ClientOptions options);
  // Each client's update of each version is there once, with the bytes the learner made.
  void ExpectExactlyOnce(int identities, uint64_t rounds) {
    std::map<std::pair<std::string, uint64_t>, int> seen;
    for (const FakeServer::Held& held : server_->Committed()) {
      ++seen[{held.client, held.header.version()}];
      EXPECT_EQ(held.bytes, ExpectedUpdate(held.client, held.header.version(), server_->Model(held.header.version())));
      EXPECT_EQ(held.header.weight(), 1.0 + static_cast<double>(held.header.version()));
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(identities) * rounds);
    for (const auto& [key, count] : seen) EXPECT_EQ(count, 1) << key.first << " version " << key.second;
    EXPECT_THAT(server_->Violations(), IsEmpty());
  }

  fs::path state_;
  std::unique_ptr<FakeServer> server_;
  int port_ = 0;
  std::atomic<bool> hang_{false};
  std::atomic<int> begun_{0};
  GpuWays ways_;
  absl::Mutex mutex_;
  size_t settled_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t stored_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t accepted_before_stored_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status result_;
  std::jthread client_;
};

TEST_F(ClientTest, HealthyServerGetsEveryUpdateOnce) {
  StartServer({}, 5);
  StartClient(3);
  ASSERT_TRUE(server_->WaitCommitted(3, absl::Seconds(30)));
  ASSERT_TRUE(WaitSettled(15));
  StopClient();
  ExpectExactlyOnce(3, 5);
  EXPECT_EQ(OutboxEntries(), 0u);
  EXPECT_EQ(server_->pushes(), 15u);
}

TEST_F(ClientTest, IdentitiesShareOneDownloadPerVersion) {
  StartServer({}, 1);
  StartClient(8);
  ASSERT_TRUE(server_->WaitCommitted(8, absl::Seconds(30)));
  EXPECT_EQ(server_->fetches(), 1u);
}

TEST_F(ClientTest, IdentitiesOfALearnerOfCohortsTrainTogether) {
  StartServer({}, 4);
  ways_.cohort = 16;
  hang_ = true;
  StartClient(8);
  ASSERT_TRUE(WaitTraining(1));  // those that come meanwhile wait for each other
  ASSERT_TRUE(server_->WaitAttached(8, absl::Seconds(30)));
  hang_ = false;
  ASSERT_TRUE(server_->WaitCommitted(8, absl::Seconds(30)));
  StopClient();
  ExpectExactlyOnce(8, 4);
  EXPECT_GT(ways_.largest_cohort, 1u);
}

TEST_F(ClientTest, UpdatesThatStayOnTheDeviceArriveAsTheOthersDo) {
  StartServer({.cut_push = 0.1}, 3, 7);
  ways_.keeps_updates = true;
  StartClient(2);
  ASSERT_TRUE(server_->WaitCommitted(2, absl::Seconds(30)));
  ExpectExactlyOnce(2, 3);
}

TEST_F(ClientTest, ALargeUpdateLeavesWhileItIsMade) {
  StartServer({}, 3);
  ways_.keeps_updates = true;
  std::atomic<int> had_half{0};
  ways_.between_halves = [&] {
    if (server_->WaitHeld(kElements * 4 / 2, absl::Seconds(30))) ++had_half;
    return absl::OkStatus();
  };
  StartClient(1, Early(kElements * 4));
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(60)));
  ASSERT_TRUE(WaitSettled(3));
  StopClient();
  ExpectExactlyOnce(1, 3);
  EXPECT_EQ(had_half, 3);
  EXPECT_EQ(server_->pushes(), 3u);  // one stream each
  for (const FakeServer::Held& held : server_->Committed()) EXPECT_TRUE(held.early);
  absl::MutexLock lock(&mutex_);
  EXPECT_EQ(stored_, 3u);
  EXPECT_EQ(accepted_before_stored_, 0u);
}

TEST_F(ClientTest, SmallUpdatesLeaveOnceTheyAreKept) {
  StartServer({}, 2);
  StartClient(1, Early(kElements * 4 + 1));
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(30)));
  for (const FakeServer::Held& held : server_->Committed()) EXPECT_FALSE(held.early);
}

// A crash would make a second release of what had left.
TEST_F(ClientTest, UpdatesWithNoiseOfTheirOwnLeaveOnceTheyAreKept) {
  StartServer({}, 2, 1, "{tensors: m.safetensors}",
              "privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5, placement: local, insecure_seed: true}\n");
  StartClient(1, Early(1));
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(30)));
  ASSERT_EQ(server_->Committed().size(), 2u);
  for (const FakeServer::Held& held : server_->Committed()) EXPECT_FALSE(held.early);
  EXPECT_THAT(server_->Violations(), IsEmpty());
}

TEST_F(ClientTest, AnUpdateThatFailsOnItsWayOutIsDeclinedAndTheNextOneArrives) {
  StartServer({}, 2);
  ways_.keeps_updates = true;
  std::atomic<bool> failed{false};
  ways_.between_halves = [&]() -> absl::Status {
    if (failed.exchange(true)) return absl::OkStatus();
    server_->WaitHeld(kElements * 4 / 2, absl::Seconds(30));
    return Internal("the device fell off the bus");
  };
  StartClient(1, Early(1));
  ASSERT_TRUE(server_->WaitDeclined(1, absl::Seconds(30)));
  EXPECT_THAT(server_->Declines()[0], HasSubstr("fell off the bus"));
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(30)));
  ASSERT_TRUE(WaitSettled(2));
  StopClient();
  ExpectExactlyOnce(1, 2);
  EXPECT_EQ(OutboxEntries(), 0u);
}

TEST_F(ClientTest, ADeviceOutOfMemoryDeclinesItsTaskAndTheDaemonGoesOn) {
  StartServer({}, 2);
  ways_.out_of_memory = 1;
  StartClient(1);
  ASSERT_TRUE(server_->WaitDeclined(1, absl::Seconds(30)));
  EXPECT_THAT(server_->Declines()[0], HasSubstr("device memory"));
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(30)));
  ExpectExactlyOnce(1, 2);
}

TEST_F(ClientTest, HeartbeatsTellHowFullAndBusyTheDeviceIs) {
  StartServer({}, 0);
  StartClient(1);
  ASSERT_TRUE(server_->WaitHeartbeat(absl::Seconds(30)));
  const v1::DeviceUsage usage = server_->LastHeartbeat().device();
  EXPECT_EQ(usage.id(), "GPU-1");
  EXPECT_EQ(usage.memory_used_bytes(), 2u);
  EXPECT_EQ(usage.memory_total_bytes(), 8u);
  EXPECT_EQ(usage.utilisation(), 0.25f);
}

TEST_F(ClientTest, ControlStreamsHaveAConnectionThatNoTransferUses) {
  StartServer({}, 2);
  StartClient(3);
  ASSERT_TRUE(server_->WaitCommitted(3, absl::Seconds(30)));
  EXPECT_GE(server_->fetches(), 2u);
  EXPECT_EQ(server_->pushes(), 6u);
  // One each, whatever the number of identities: a daemon costs the server two connections.
  ASSERT_EQ(server_->control_peers().size(), 1u);
  ASSERT_EQ(server_->data_peers().size(), 1u);
  EXPECT_NE(*server_->control_peers().begin(), *server_->data_peers().begin());
}

TEST_F(ClientTest, CutUploadsResumeWhereTheServerStands) {
  StartServer({.cut_push = 0.1, .early_partial = 0.1}, 6, 2);
  StartClient(2);
  ASSERT_TRUE(server_->WaitCommitted(2, absl::Seconds(60)));
  ExpectExactlyOnce(2, 6);
}

TEST_F(ClientTest, LostAnswersAndPushBackCountNothingTwice) {
  StartServer({.lose_answer = 0.4, .push_back = 0.4}, 6, 3);
  StartClient(2);
  ASSERT_TRUE(server_->WaitCommitted(2, absl::Seconds(60)));
  ExpectExactlyOnce(2, 6);
}

TEST_F(ClientTest, DownloadsResumeAndWrongChunksAreFetchedAgain) {
  StartServer({.cut_fetch = 0.05, .corrupt_fetch = 0.05}, 6, 4);
  StartClient(1);
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(60)));
  EXPECT_GT(server_->fetches(), 6u);
  ExpectExactlyOnce(1, 6);
}

TEST_F(ClientTest, DroppedControlStreamsLoseNothing) {
  StartServer({.drop_attach = 0.5}, 6, 5);
  StartClient(2);
  ASSERT_TRUE(server_->WaitCommitted(2, absl::Seconds(60)));
  ExpectExactlyOnce(2, 6);
}

void ClientTest::ExpectToSurviveEverything(ClientOptions options) {
  StartServer({.cut_push = 0.05, .early_partial = 0.05, .lose_answer = 0.1, .push_back = 0.1, .cut_fetch = 0.02, .corrupt_fetch = 0.01,
               .drop_attach = 0.1}, 20, 6);
  StartClient(4, std::move(options));
  for (int restart = 0; restart < 5; ++restart) {
    std::this_thread::sleep_for(std::chrono::milliseconds(150 + 70 * restart));
    server_->Stop(restart % 2 == 0);
    ASSERT_EQ(server_->Start(port_), port_);
  }
  ASSERT_TRUE(server_->WaitCommitted(4, absl::Seconds(90)));
  ExpectExactlyOnce(4, 20);
}
TEST_F(ClientTest, EverythingAtOnceOverServerRestartsThatForget) { ExpectToSurviveEverything({}); }
TEST_F(ClientTest, EverythingAtOnceAndUpdatesThatLeaveEarly) { ExpectToSurviveEverything(Early(1)); }
TEST_F(ClientTest, EverythingAtOnceAndUpdatesThatLeaveEarlyFromADevice) {
  ways_.keeps_updates = true;
  ExpectToSurviveEverything(Early(1));
}

TEST_F(ClientTest, UpdateMadeWhileTheServerIsGoneArrivesAfterTheClientsRestart) {
  StartServer({}, 1);
  hang_ = true;
  StartClient(1);
  ASSERT_TRUE(server_->WaitAttached(1, absl::Seconds(30)));
  ASSERT_TRUE(WaitTraining(1));
  server_->Stop(true);
  hang_ = false;
  ASSERT_TRUE(WaitStored(1));
  StopClient();
  EXPECT_EQ(OutboxEntries(), 1u);
  ASSERT_EQ(server_->Start(port_), port_);
  StartClient(1);
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(30)));
  ExpectExactlyOnce(1, 1);
}

TEST_F(ClientTest, StopAbandonsTrainingAndDetaches) {
  StartServer({}, 1);
  hang_ = true;
  StartClient(2);
  ASSERT_TRUE(server_->WaitAttached(2, absl::Seconds(30)));
  StopClient();
  EXPECT_TRUE(server_->WaitAttached(0, absl::Seconds(30)));
  EXPECT_EQ(OutboxEntries(), 0u);
}

TEST_F(ClientTest, StopWorksWhileNoServerIsThere) {
  port_ = 1;
  StartClient(2);
  absl::SleepFor(absl::Milliseconds(100));
  StopClient();
}

TEST_F(ClientTest, CancelledTaskEndsAndTheNextOneIsDone) {
  StartServer({}, 1);
  hang_ = true;
  StartClient(1);
  ASSERT_TRUE(server_->WaitAttached(1, absl::Seconds(30)));
  ASSERT_TRUE(WaitTraining(1));
  server_->CancelTasks();  // the server issues another for the same version
  ASSERT_TRUE(WaitTraining(2)) << "the first one does not end";
  EXPECT_EQ(OutboxEntries(), 0u);
  hang_ = false;
  ASSERT_TRUE(server_->WaitCommitted(1, absl::Seconds(30)));
  ExpectExactlyOnce(1, 1);
  EXPECT_THAT(server_->Declines(), IsEmpty());
  for (const FakeServer::Held& held : server_->Committed()) EXPECT_EQ(held.header.key().task(), 2u);
}

TEST_F(ClientTest, FullOutboxDeclinesWithItsReason) {
  StartServer({}, 1);
  ClientOptions options;
  options.outbox_limit_bytes = kElements * 4 - 1;
  StartClient(1, options);
  ASSERT_TRUE(server_->WaitDeclined(1, absl::Seconds(30)));
  EXPECT_THAT(server_->Declines()[0], HasSubstr("outbox is full"));
}

TEST_F(ClientTest, TorchScriptIsDeclinedWithItsReason) {
  StartServer({}, 1, 1, "{torchscript: net.pt}");
  StartClient(1);
  ASSERT_TRUE(server_->WaitDeclined(1, absl::Seconds(30)));
  EXPECT_THAT(server_->Declines()[0], HasSubstr("--allow-torchscript"));
}

TEST_F(ClientTest, EvaluatorReports) {
  StartServer({}, 0);
  server_->SendEvaluateTasks(true);
  ClientOptions options;
  options.trains = false;
  options.evaluates = true;
  StartClient(1, options);
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (server_->Evaluations().empty() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  ASSERT_EQ(server_->Evaluations().size(), 1u);
  EXPECT_EQ(server_->Evaluations()[0].accuracy(), 0.5);
  EXPECT_EQ(server_->Evaluations()[0].version(), 3u);
}

}  // namespace
}  // namespace tributary::client
