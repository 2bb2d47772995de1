// Forward-only clients of LibTorch: their fitness is what evaluating each member's weights gives.
#include <gmock/gmock.h>

#include <cmath>

#include "client/core/eggroll_fitness.h"
#include "client/torch/learner.h"
#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr uint64_t kSeedOfNoise = 4242;

class ForwardOnlyTest : public ::testing::TestWithParam<DType> {
 protected:
  ForwardOnlyTest() : learner_(*MakeTorchLearner({.device = "cpu", .threads = 1})) {
    spec_ = ZooJob("mlp", {{"input", "6"}, {"hidden", "5"}, {"classes", "3"}});
    spec_.dtype = GetParam();
    spec_.strategy = {.name = "eggroll", .params = {{"sigma", "0.2"}, {"rank", "3"}}};
    spec_.local.solver = kEggrollSolver;
    spec_.local.batch = 7;
    model_ = *InitialModel(spec_);
    update_ = *TensorLayout::Create({{.name = "fitness", .shape = {8}, .dtype = GetParam(), .kind = TensorKind::kTrainable}});
  }
  TrainRequest Request(std::span<const std::byte> model) {
    TrainRequest request;
    request.spec = &spec_;
    request.layout = &model_.layout;
    request.update_layout = &update_;
    request.model = model;
    request.seed = 3;
    request.noise_seed = kSeedOfNoise;
    request.may_stay_on_device = true;
    return request;
  }
  std::vector<double> Floats(std::span<const std::byte> bytes) const {
    std::vector<double> values(bytes.size() / DTypeBytes(spec_.dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      if (spec_.dtype == DType::kF64) {
        std::memcpy(&values[i], bytes.data() + 8 * i, 8);
      } else {
        float value = 0;
        std::memcpy(&value, bytes.data() + 4 * i, 4);
        values[i] = value;
      }
    }
    return values;
  }
  std::vector<std::byte> Bytes(const std::vector<double>& values) const {
    std::vector<std::byte> bytes(values.size() * DTypeBytes(spec_.dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      const auto narrow = static_cast<float>(values[i]);
      if (spec_.dtype == DType::kF64) {
        std::memcpy(bytes.data() + 8 * i, &values[i], 8);
      } else {
        std::memcpy(bytes.data() + 4 * i, &narrow, 4);
      }
    }
    return bytes;
  }

  JobSpec spec_;
  std::unique_ptr<Learner> learner_;
  FlatModel model_;
  TensorLayout update_;
};

INSTANTIATE_TEST_SUITE_P(Types, ForwardOnlyTest, ::testing::Values(DType::kF32, DType::kF64), [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(ForwardOnlyTest, FitnessIsTheLossOfEachMembersWeights) {
  const Dataset data = Classes(30, {6}, 3);  // 4 batches of 7 and one of 2: weighed by their sizes
  const auto result = learner_->Train(Request(model_.bytes), &data);
  ASSERT_THAT(result, IsOk());
  const std::vector<double> fitness = Floats(result->update), start = Floats(model_.bytes);
  ASSERT_EQ(fitness.size(), 8);
  const std::vector<EggrollTensor> tensors = EggrollTensors(model_.layout, 3);
  ASSERT_EQ(tensors.size(), 4);
  std::vector<float> noise(start.size());
  for (uint32_t i = 0; i < 8; ++i) {
    EggrollNoise(tensors, kSeedOfNoise, i / 2, noise);
    std::vector<double> w = start;
    for (size_t k = 0; k < w.size(); ++k) w[k] += (i % 2 == 0 ? 1 : -1) * 0.2 / std::sqrt(3.0) * noise[k];
    const auto measured = learner_->Evaluate(Request(Bytes(w)), &data);
    ASSERT_THAT(measured, IsOk());
    EXPECT_NEAR(fitness[i], -measured->loss, GetParam() == DType::kF64 ? 1e-12 : 1e-5) << i;
  }
  const auto again = learner_->Train(Request(model_.bytes), &data);
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->update == result->update);
  EXPECT_EQ(result->on_device, nullptr);
}

TEST_P(ForwardOnlyTest, StepsAreMinibatchesThatAllMembersSee) {
  const Dataset data = Classes(30, {6}, 3);
  spec_.local.steps = 1;
  const auto one = learner_->Train(Request(model_.bytes), &data);
  spec_.local.steps = 0;
  const auto all = learner_->Train(Request(model_.bytes), &data);
  ASSERT_THAT(one, IsOk());
  ASSERT_THAT(all, IsOk());
  EXPECT_FALSE(one->update == all->update);
  EXPECT_EQ(all->examples, 30);
}

TEST_P(ForwardOnlyTest, ACohortGoesOneAfterTheOther) {
  const Dataset data = Classes(30, {6}, 3), other = Classes(12, {6}, 3, 9);
  const std::vector<CohortMember> members = {{Request(model_.bytes), &data}, {Request(model_.bytes), &other}};
  const auto together = learner_->TrainCohort(members);
  ASSERT_EQ(together.size(), 2);
  for (size_t i = 0; i < 2; ++i) {
    const auto alone = learner_->Train(members[i].request, members[i].data);
    ASSERT_THAT(together[i], IsOk());
    EXPECT_TRUE(together[i]->update == alone->update) << i;
  }
}

TEST_P(ForwardOnlyTest, OtherUpdatesThanFitnessAreRefused) {
  const Dataset data = Classes(30, {6}, 3);
  TrainRequest request = Request(model_.bytes);
  request.update_layout = &model_.layout;
  EXPECT_THAT(learner_->Train(request, &data), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.solver")));
}

}  // namespace
}  // namespace tributary::client
