// The client's half of EGGROLL on a problem with a closed form.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "client/core/analytic_learner.h"
#include "client/core/eggroll_fitness.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr uint64_t kNoiseSeed = 99;

// ½(x − b)ᵀA(x − b) in 3 dimensions.
class PopulationTest : public ::testing::Test {
 protected:
  PopulationTest() {
    auto spec = ParseJobSpec("name: t\nmodel: {zoo: quadratic}\ncohort: {size: 1}\ndtype: float64\nlocal: {solver: eggroll}\n"
                             "strategy: {name: eggroll, population: 6, sigma: 0.3, rank: 2}\n", "t");
    EXPECT_TRUE(spec.ok()) << spec.status();
    spec_ = *std::move(spec);
    ProblemTensors tensors;
    tensors["A"] = {.shape = {3, 3}, .values = {2, .5, 0, .5, 1, 0, 0, 0, 3}};
    tensors["b"] = {.shape = {3}, .values = {1, -2, .5}};
    data_.problems.push_back(*MakeAnalyticProblem("quadratic", {}, std::move(tensors), "file"));
    layout_ = AnalyticInitialModel(DType::kF64, data_.problems)->layout;
    update_ = *TensorLayout::Create({{.name = "fitness", .shape = {6}, .dtype = DType::kF64, .kind = TensorKind::kTrainable}});
  }
  TrainRequest Request() {
    TrainRequest request;
    request.spec = &spec_;
    request.layout = &layout_;
    request.update_layout = &update_;
    request.model = std::as_bytes(std::span(x_));
    request.noise_seed = kNoiseSeed;
    return request;
  }

  JobSpec spec_;
  Dataset data_;
  TensorLayout layout_, update_;
  std::vector<double> x_ = {.25, -.5, 2};
  AnalyticLearner learner_;
};

TEST_F(PopulationTest, FitnessIsTheLossAtEachMembersWeights) {
  const absl::StatusOr<TrainResult> result = learner_.Train(Request(), &data_);
  ASSERT_THAT(result, IsOk());
  ASSERT_EQ(result->update.size(), 6 * sizeof(double));
  std::vector<double> fitness(6);
  std::memcpy(fitness.data(), result->update.data(), result->update.size());
  const EggrollLayer layer{.seed = kNoiseSeed, .layer = 0, .rank = 2, .rows = 3, .columns = 1};  // a vector is a column
  double mean = 0;
  for (uint32_t i = 0; i < 6; ++i) {
    std::vector<double> w = x_;
    for (uint32_t k = 0; k < 2; ++k) {
      const uint32_t a = EggrollSigns(layer, i / 2, k, 0, 0).word[0], b = EggrollSigns(layer, i / 2, k, 1, 0).word[0];
      for (uint32_t row = 0; row < 3; ++row) {
        const int sign = ((a >> row ^ b) & 1U) != 0 ? -1 : 1;
        w[row] += (i % 2 == 0 ? 1 : -1) * 0.3 / std::sqrt(2.0) * sign;
      }
    }
    EXPECT_NEAR(fitness[i], -data_.problems[0]->Loss(w), 1e-14) << i;
    mean -= fitness[i] / 6;
  }
  EXPECT_NEAR(result->metrics.at("train_loss"), mean, 1e-12);
  EXPECT_EQ(x_, (std::vector<double>{.25, -.5, 2}));
}

TEST_F(PopulationTest, ALogMakesTheNextVersion) {
  const absl::StatusOr<FitnessReplay> replay = FitnessReplay::Of(spec_, layout_, 8 + 3 * 4);
  ASSERT_THAT(replay, IsOk());
  const EggrollPart part{.seed = 11, .pairs = {{0, 1 << 20}, {2, -(3 << 19)}}};
  std::vector<double> model = x_;
  ASSERT_THAT(replay->Apply(EggrollLog({&part, 1}, 1, 6), std::as_writable_bytes(std::span(model))), IsOk());
  std::vector<float> first(3), third(3);
  const auto tensors = EggrollTensors(layout_, 2);
  EggrollNoise(tensors, 11, 0, first);
  EggrollNoise(tensors, 11, 2, third);
  for (size_t i = 0; i < 3; ++i) {  // η·σ/√(N·r)·(1·first − 1.5·third), η = .05 by default
    EXPECT_NEAR(model[i], x_[i] + .05 * .3 / std::sqrt(12.0) * (first[i] - 1.5 * third[i]), 1e-15) << i;
  }
  std::vector<double> same = x_;
  ASSERT_THAT(replay->Apply(EggrollLog({}, 1, 6), std::as_writable_bytes(std::span(same))), IsOk());
  EXPECT_EQ(same, x_);
  EXPECT_THAT(replay->Apply({}, std::as_writable_bytes(std::span(same))), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(same, x_);
  EXPECT_THAT(FitnessReplay::Of(spec_, layout_, 12).status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 20")));
}

TEST_F(PopulationTest, AnotherSeedIsAnotherPopulation) {
  TrainRequest other = Request();
  other.noise_seed = kNoiseSeed + 1;
  const auto one = learner_.Train(Request(), &data_), two = learner_.Train(other, &data_), again = learner_.Train(Request(), &data_);
  ASSERT_THAT(one, IsOk());
  ASSERT_THAT(two, IsOk());
  EXPECT_TRUE(one->update == again->update);
  EXPECT_FALSE(one->update == two->update);
}

TEST_F(PopulationTest, UpdatesThatAreNoFitnessAreRefused) {
  TrainRequest request = Request();
  request.update_layout = &layout_;
  EXPECT_THAT(learner_.Train(request, &data_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.solver")));
  const TensorLayout odd = *TensorLayout::Create({{.name = "fitness", .shape = {5}, .dtype = DType::kF64, .kind = TensorKind::kTrainable}});
  request.update_layout = &odd;
  EXPECT_THAT(learner_.Train(request, &data_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("even number")));
  request.update_layout = nullptr;
  EXPECT_THAT(learner_.Train(request, &data_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("even number")));
}

TEST_F(PopulationTest, ASolverOfLibTorchsModelsIsRefused) {
  TrainRequest request = Request();
  request.update_layout = nullptr;
  spec_.strategy = {};
  spec_.local.solver = "adamw";
  EXPECT_THAT(learner_.Train(request, &data_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected sgd or exact")));
}

TEST_F(PopulationTest, ALossThatIsNotFiniteNamesTheMember) {
  x_[0] = 1e200;
  EXPECT_THAT(learner_.Train(Request(), &data_), StatusIs(absl::StatusCode::kInternal, HasSubstr("member 0 of 6")));
}

TEST_F(PopulationTest, StopsWhenItIsTold) {
  TrainRequest request = Request();
  int calls = 0;
  request.progress = [&](float done) { return ++calls < 3 && done < 1; };
  EXPECT_THAT(learner_.Train(request, &data_), StatusIs(absl::StatusCode::kCancelled, HasSubstr("after member 3 of 6")));
}

}  // namespace
}  // namespace tributary::client
