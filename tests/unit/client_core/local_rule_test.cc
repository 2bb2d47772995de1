// What a client does between its tasks, on f(w) = ½a(w − b)², where every solve has a closed form; and buffers that stay at home.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "client/core/local_buffers.h"
#include "client/core/local_rule.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr double kA = 2, kB = 3, kRho = 0.5;

class ContinualTest : public ::testing::Test {
 protected:
  ContinualTest() {
    StrategySpec strategy{.name = "rerce_admm", .params = {{"rho", "0.5"}, {"continual", "true"}}};
    LocalSpec local;
    local.solver = "exact";
    auto made = LocalRule::Make(strategy, local, 0);
    EXPECT_THAT(made, IsOk());
    rule_ = std::make_unique<LocalRule>(*std::move(made));
  }
  // argmin f(w) + v·w + (ρ/2)(w − s)².
  static double Argmin(double v, double s) { return (kA * kB - v + kRho * s) / (kA + kRho); }
  absl::StatusOr<double> Ask(uint64_t version, double x, const ClientState& state, std::optional<double> initial = {}, uint64_t epoch = 0) {
    const std::vector<double> model = {x}, start = {initial.value_or(0)};
    LocalTask task{.x = model, .initial = {}, .vectors = {}, .version = version, .epoch = epoch, .state = &state};
    if (initial) task.initial = start;
    solves_ = 0;
    TRIB_ASSIGN_OR_RETURN(LocalUplink uplink, rule_->Solve(task, [&](const LocalPlan& plan) -> absl::StatusOr<LocalOutcomeVectors> {
      ++solves_;
      return LocalOutcomeVectors{.y = {Argmin(plan.v[0], plan.step.s[0])}, .mean_gradient = {}};
    }));
    next_ = *uplink.state;
    next_.version = version + 1;
    return uplink.groups.at(0).at(0);
  }

  std::unique_ptr<LocalRule> rule_;
  ClientState next_;
  int solves_ = 0;
};

TEST_F(ContinualTest, RoundsThatAClientWasNotAskedInAreMadeUpForWithWhatItReceivedLast) {
  // The same, round by round: in rounds 0, 3, 4 and 7 the client is asked and receives x, in the others it goes on by itself.
  const std::map<uint64_t, double> asked = {{0, 1.0}, {3, -2.0}, {4, 5.0}, {7, 0.5}};
  double w = 1, h = 0, s = 1;
  ClientState state;
  for (uint64_t round = 0; round <= 7; ++round) {
    const auto now = asked.find(round);
    if (now != asked.end()) s = now->second;
    const double before = w;
    w = Argmin(-h, s);
    h += kRho * (s - w);
    if (now == asked.end()) continue;
    const auto up = Ask(round, s, state);
    ASSERT_THAT(up, IsOk());
    EXPECT_NEAR(*up, 2 * w - before, 1e-14) << round;
    EXPECT_NEAR(next_.vectors.at("w")[0], w, 1e-14);
    EXPECT_NEAR(next_.vectors.at("h")[0], h, 1e-14);
    state = next_;
  }
}

TEST_F(ContinualTest, AClientThatComesLateBeginsWhereAllBegan) {
  double w = 1, h = 0;
  for (int round = 2; round < 5; ++round) {  // the epoch began with version 2, the client is asked in round 5
    w = Argmin(-h, 1);
    h += kRho * (1 - w);
  }
  const double last = Argmin(-h, 4);
  const auto up = Ask(5, 4, ClientState(), 1.0, 2);
  ASSERT_THAT(up, IsOk());
  EXPECT_NEAR(*up, 2 * last - w, 1e-14);
  EXPECT_EQ(solves_, 4);
  EXPECT_THAT(Ask(5, 4, ClientState(), std::nullopt, 2), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 2, where all began")));
}

TEST_F(ContinualTest, ALongAbsenceEndsWhereNothingChangesAnyMore) {
  ASSERT_THAT(Ask(0, 1, ClientState()), IsOk());
  const ClientState state = next_;
  ASSERT_THAT(Ask(1'000'000'000, 1, state), IsOk());
  EXPECT_LT(solves_, 1000);
}

// Doubles what it finds in the buffers, counts one batch, and moves the weights by 1.
class BufferLearner final : public Learner {
 public:
  std::string device() const override { return "cpu"; }
  absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset*) override {
    TrainResult result;
    result.update.assign(request.model.begin(), request.model.end());
    float weight = 1, buffer = 0;
    int64_t counter = 0;
    std::memcpy(result.update.data(), &weight, 4);
    std::memcpy(&buffer, result.update.data() + 4, 4);
    seen = buffer;
    buffer = 2 * buffer + 1;
    std::memcpy(result.update.data() + 4, &buffer, 4);
    std::memcpy(&counter, result.update.data() + 8, 8);
    ++counter;
    std::memcpy(result.update.data() + 8, &counter, 8);
    return result;
  }
  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest&, const Dataset*) override { return EvaluateResult(); }
  float seen = 0;
};

TEST(LocalBuffersTest, StayWithTheClientFromOneCountedUpdateToTheNext) {
  const auto layout = TensorLayout::Create({{"w", {1}, DType::kF32, TensorKind::kTrainable},
                                            {"mean", {1}, DType::kF32, TensorKind::kBuffer},
                                            {"batches", {1}, DType::kI64, TensorKind::kCounter}});
  ASSERT_THAT(layout, IsOk());
  JobSpec spec;
  std::vector<std::byte> model(16);
  const float received = 5;
  const int64_t batches = 7;
  std::memcpy(model.data() + 4, &received, 4);
  std::memcpy(model.data() + 8, &batches, 8);
  ClientState state;
  BufferLearner learner;
  const auto train = [&] {
    TrainRequest request;
    request.spec = &spec;
    request.layout = &*layout;
    request.model = model;
    request.state = &state;
    auto result = TrainLocally(learner, request, nullptr);
    EXPECT_THAT(result, IsOk());
    return *std::move(result);
  };
  const auto sent = [](const TrainResult& result) {
    float buffer = 0;
    std::memcpy(&buffer, result.update.data() + 4, 4);
    return buffer;
  };
  const auto counted = [](const TrainResult& result) {
    int64_t counter = 0;
    std::memcpy(&counter, result.update.data() + 8, 8);
    return counter;
  };
  EXPECT_EQ(sent(train()), 11.0f);  // buffers: average
  spec.strategy.params["buffers"] = "local";
  const TrainResult first = train();
  EXPECT_EQ(learner.seen, 5.0f);    // it has none of its own yet
  EXPECT_EQ(sent(first), 5.0f);     // what came down, whatever it has made of it
  EXPECT_EQ(counted(first), 8);
  EXPECT_THAT(first.state->vectors.at(kBuffersVector), ElementsAre(11.0));
  EXPECT_EQ(sent(train()), 5.0f);
  EXPECT_EQ(learner.seen, 5.0f);    // the first update is not counted yet
  state = *first.state;
  train();
  EXPECT_EQ(learner.seen, 11.0f);
  spec.privacy.enabled = true;
  EXPECT_EQ(counted(train()), 7);
  state.vectors[kBuffersVector] = {1, 2};
  TrainRequest request;
  request.spec = &spec;
  request.layout = &*layout;
  request.model = model;
  request.state = &state;
  EXPECT_THAT(TrainLocally(learner, request, nullptr), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 1 elements, got 2")));
}

}  // namespace
}  // namespace tributary::client
