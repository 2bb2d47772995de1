// The strategies' local steps over LibTorch against the analytic learner's own arithmetic (which trajectories_test.py compares with NumPy):
// one affine layer with cross entropy, minibatches, fp64, several tasks in a row with the state that each leaves.
#include <gmock/gmock.h>

#include <cmath>

#include "client/core/analytic_learner.h"
#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

constexpr size_t kExamples = 14, kFeatures = 5, kClasses = 3, kElements = kFeatures * kClasses + kClasses;

struct StepCase {
  std::string strategy;
  ParamMap params;
  std::vector<std::string> down, groups;
  friend std::ostream& operator<<(std::ostream& out, const StepCase& c) { return out << c.strategy; }
};
class LocalStepTest : public ::testing::TestWithParam<StepCase> {};

Dataset WithProblem(Dataset data) {
  ProblemTensors tensors;
  ProblemTensor& x = tensors["x"];
  ProblemTensor& y = tensors["y"];
  x.shape = {kExamples, kFeatures};
  x.values.assign(data.all->x.begin(), data.all->x.end());
  y.shape = {kExamples};
  y.values.assign(data.all->labels.begin(), data.all->labels.end());
  y.integer = true;
  auto problem = MakeAnalyticProblem("linear", {.classes = kClasses, .l2 = 0}, std::move(tensors), "test");
  EXPECT_TRUE(problem.ok()) << problem.status();
  data.problems.push_back(*problem);
  return data;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  // A dozen steps of sums of a few products in double, of values of at most about ten.
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-12 * std::max(1.0, std::abs(expected[i]))) << what << ", element " << i;
}

TEST_P(LocalStepTest, AgreesInDoubleWithTheAnalyticLearner) {
  const StepCase& step = GetParam();
  JobSpec spec = ZooJob("linear", {{"input", "5"}, {"classes", "3"}});
  spec.dtype = DType::kF64;
  spec.local.steps = 6;
  spec.local.batch = 4;
  spec.local.lr = 0.1;
  spec.strategy = {.name = step.strategy, .params = step.params};
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  ASSERT_EQ(model.layout.trainable_count(), kElements);
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout update_layout, WithGroups(model.layout, step.groups));
  const Dataset data = WithProblem(Classes(kExamples, {kFeatures}, kClasses));
  const auto torch = CpuLearner();
  AnalyticLearner analytic;
  ClientState torch_state, analytic_state;
  CounterRandom random(5);
  for (uint64_t version = 0; version < 3; ++version) {
    std::map<std::string, std::vector<double>> down;
    for (const std::string& name : step.down) {
      for (size_t i = 0; i < kElements; ++i) down[name].push_back(random.Normal());
    }
    TrainRequest request = RequestFor(spec, model, 40 + version);
    request.version = version;
    request.update_layout = &update_layout;
    for (const auto& [name, values] : down) request.vectors[name] = std::as_bytes(std::span(values));
    request.state = &torch_state;
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult got, torch->Train(request, &data));
    request.state = &analytic_state;
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, analytic.Train(request, &data));
    const size_t elements = kElements * step.groups.size();
    ExpectNear(Floats<double>(got.update, elements), Floats<double>(expected.update, elements), fmt::format("version {}", version));
    ASSERT_EQ(got.state.has_value(), expected.state.has_value());
    if (got.state) {
      for (const auto& [name, values] : expected.state->vectors) ExpectNear(got.state->vectors.at(name), values, name);
      torch_state = *got.state;
      analytic_state = *expected.state;
      torch_state.version = analytic_state.version = version + 1;
    }
    for (size_t i = 0; i < kElements; ++i) {
      const double value = random.Normal();
      std::memcpy(model.bytes.data() + i * sizeof(double), &value, sizeof(double));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Strategies, LocalStepTest,
    ::testing::Values(StepCase{"fedavg", {}, {}, {""}}, StepCase{"fedprox", {{"mu", "0.7"}}, {}, {""}}, StepCase{"fedavg_m", {{"beta", "0.3"}}, {"g"}, {""}},
                      StepCase{"fedavg_m_vr", {{"beta", "0.3"}}, {"g"}, {""}}, StepCase{"scaffold", {{"uplink", "full"}}, {"c"}, {"", "control"}},
                      StepCase{"scaffold_m", {{"beta", "0.3"}}, {"g", "c"}, {"control"}},
                      StepCase{"scaffold_m_vr", {{"beta", "0.3"}}, {"g", "c"}, {"", "control"}}, StepCase{"rerce_admm", {{"rho", "0.5"}}, {"s"}, {""}},
                      StepCase{"fedadmm", {{"rho", "0.5"}}, {}, {""}}),
    [](const auto& info) { return info.param.strategy; });

TEST(LocalStepBuffersTest, TheGradientAtTheModelBeforeLeavesNoTraceInRunningStatistics) {
  JobSpec spec = ZooJob("resnet18", {{"input", "3x32x32"}, {"classes", "3"}, {"stem", "small"}});
  spec.local.steps = 1;  // both runs see the same activations
  spec.local.batch = 4;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(8, {3, 32, 32}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult plain, learner->Train(RequestFor(spec, model), &data));
  spec.strategy = {.name = "fedavg_m_vr", .params = {}};
  const std::vector<std::byte> g(model.layout.trainable_count() * sizeof(float));
  TrainRequest request = RequestFor(spec, model);
  request.version = 2;
  request.vectors["g"] = g;
  const TensorLayout update_layout = model.layout;
  request.update_layout = &update_layout;
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult reduced, learner->Train(request, &data));
  const size_t first = model.layout.trainable_count() * sizeof(float);
  EXPECT_TRUE(std::equal(plain.update.begin() + static_cast<ptrdiff_t>(first), plain.update.end(), reduced.update.begin() + static_cast<ptrdiff_t>(first)));
  EXPECT_FALSE(std::equal(plain.update.begin() + static_cast<ptrdiff_t>(first), plain.update.end(), model.bytes.begin() + static_cast<ptrdiff_t>(first)));
}

}  // namespace
}  // namespace tributary::client
