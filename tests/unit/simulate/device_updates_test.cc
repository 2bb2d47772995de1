// A simulation whose learner leaves updates on its device, against the same one with updates in memory: equal models, bit for bit.
#include <gmock/gmock.h>

#include "tests/unit/simulate/fixtures.h"

namespace tributary::simulate {
namespace {

using ::testing::HasSubstr;

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
  clipped.strategy.params["weighting"] = "uniform";
  clipped.privacy.clip = 1;
  clipped.privacy.delta = 1e-5;
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
