// A simulation whose learner leaves updates on its device, against the same one with updates in memory: equal models, bit for bit.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>

#include "client/core/random.h"
#include "simulate/simulation.h"
#include "tests/support/host_update.h"
#include "tests/support/status_matchers.h"

namespace tributary::simulate {
namespace {

using ::testing::HasSubstr;
using tributary::testing::HostUpdate;

constexpr int64_t kElements = 20'000;  // two blocks of a fold
constexpr size_t kClients = 7;

// Its update is drawn from the request's seed.
class DrawingLearner final : public client::Learner {
 public:
  explicit DrawingLearner(bool keeps) : keeps_(keeps) {}
  std::string device() const override { return "test"; }
  size_t cohort_size() const override { return 3; }
  absl::StatusOr<client::TrainResult> Train(const client::TrainRequest& request, const client::Dataset*) override {
    client::TrainResult result;
    client::CounterRandom random(request.seed, request.version);
    std::string bytes(request.layout->total_bytes(), '\0');
    for (size_t i = 0; i < request.layout->trainable_count(); ++i) {
      const auto value = static_cast<float>(scale * random.Normal());
      std::memcpy(bytes.data() + i * sizeof(float), &value, sizeof(float));
    }
    const bool stays = keeps_ && request.may_stay_on_device && !(mixed && request.shard % 3 == 1);
    if (stays) {
      ++stayed;
      result.on_device = std::make_shared<HostUpdate>(std::move(bytes));
    } else {
      result.update.resize(bytes.size());
      std::memcpy(result.update.data(), bytes.data(), bytes.size());
    }
    result.examples = 3 + static_cast<uint64_t>(request.shard);
    result.weight = static_cast<double>(result.examples);
    return result;
  }
  absl::StatusOr<client::EvaluateResult> Evaluate(const client::TrainRequest&, const client::Dataset*) override { return client::EvaluateResult{}; }

  double scale = 0.1;
  bool mixed = false;  // some come to the host all the same
  int stayed = 0;

 private:
  const bool keeps_;
};

JobSpec Job(const std::string& strategy, bool reproducible) {
  JobSpec spec;
  spec.name = "device";
  spec.strategy.name = strategy;
  spec.reproducible = reproducible;
  spec.cohort.size = 5;
  spec.stop.versions = 4;
  return spec;
}

absl::StatusOr<SimulationResult> RunWith(const JobSpec& spec, client::Learner* learner, TensorKind second = TensorKind::kTrainable) {
  SimulationOptions options;
  options.spec = spec;
  for (size_t i = 0; i < kClients; ++i) options.clients.push_back(fmt::format("c{}", i));
  TRIB_ASSIGN_OR_RETURN(options.initial.layout, TensorLayout::Create({{"w", {kElements}, DType::kF32, TensorKind::kTrainable}, {"b", {3}, DType::kF32, second}}));
  options.initial.bytes.resize(options.initial.layout.total_bytes());
  options.learners = {learner};
  options.data = [](uint32_t) -> absl::StatusOr<std::shared_ptr<const client::Dataset>> { return nullptr; };
  return RunSimulation(options);
}

class DeviceUpdatesTest : public ::testing::TestWithParam<std::tuple<const char*, bool>> {};

TEST_P(DeviceUpdatesTest, MakeTheModelsOfUpdatesInMemory) {
  const auto& [strategy, reproducible] = GetParam();
  const JobSpec spec = Job(strategy, reproducible);
  DrawingLearner here(false);
  TRIB_ASSERT_OK_AND_ASSIGN(const SimulationResult expected, RunWith(spec, &here));
  ASSERT_EQ(expected.state, SimulationState::kDone) << expected.reason;
  EXPECT_NE(expected.model.bytes, std::vector<std::byte>(expected.model.bytes.size()));
  for (const bool mixed : {false, true}) {
    DrawingLearner there(true);
    there.mixed = mixed;
    TRIB_ASSERT_OK_AND_ASSIGN(const SimulationResult got, RunWith(spec, &there));
    EXPECT_GT(there.stayed, 0);
    EXPECT_EQ(got.state, SimulationState::kDone) << got.reason;
    EXPECT_EQ(got.model_sha256, expected.model_sha256);
    EXPECT_EQ(got.bytes_up, expected.bytes_up);
    EXPECT_EQ(got.updates_committed, expected.updates_committed);
  }
}

INSTANTIATE_TEST_SUITE_P(Jobs, DeviceUpdatesTest,
                         ::testing::Combine(::testing::Values("fedavg", "fedadam", "fedbuff", "fedau"), ::testing::Bool()),
                         [](const auto& info) { return fmt::format("{}{}", std::get<0>(info.param), std::get<1>(info.param) ? "Reproducible" : ""); });

TEST(DeviceUpdatesErrorsTest, WhoNeedsMoreThanTheirSumHasThemComeToMemory) {
  JobSpec coded = Job("fedavg", false);
  coded.codec = "int8";
  JobSpec whole = Job("median", false);
  JobSpec clipped = Job("fedavg", false);
  clipped.privacy.enabled = true;
  clipped.privacy.clip = 1;
  clipped.privacy.noise_multiplier = 1;
  clipped.cohort.population = kClients;
  JobSpec noisy = Job("fedavg", false);
  noisy.simulate.channel.uplink_var = 0.1;
  for (const JobSpec& spec : {coded, whole, clipped, noisy}) {
    DrawingLearner learner(true);
    TRIB_ASSERT_OK_AND_ASSIGN(const SimulationResult result, RunWith(spec, &learner));
    EXPECT_EQ(result.state, SimulationState::kDone) << result.reason;
    EXPECT_EQ(learner.stayed, 0);
  }
  DrawingLearner learner(true);
  TRIB_ASSERT_OK_AND_ASSIGN(const SimulationResult result, RunWith(Job("fedavg", false), &learner, TensorKind::kBuffer));
  EXPECT_EQ(learner.stayed, 0);
}

TEST(DeviceUpdatesErrorsTest, ASumOutOfRangeIsNamedAsOneInMemory) {
  for (const bool keeps : {false, true}) {
    DrawingLearner learner(keeps);
    learner.scale = 1e7;
    TRIB_ASSERT_OK_AND_ASSIGN(const SimulationResult result, RunWith(Job("fedavg", true), &learner));
    EXPECT_EQ(result.state, SimulationState::kFailed);
    EXPECT_THAT(result.reason, HasSubstr("fixed point"));
  }
}

}  // namespace
}  // namespace tributary::simulate
