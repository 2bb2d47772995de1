// The analytic models and their learner against closed forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "client/core/analytic_learner.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

ProblemTensor Tensor(std::vector<int64_t> shape, std::vector<double> values, bool integer = false) {
  return {.shape = std::move(shape), .values = std::move(values), .integer = integer};
}

std::shared_ptr<const Dataset> Client(const std::string& zoo, ProblemTensors tensors, AnalyticParams params = {}) {
  auto problem = MakeAnalyticProblem(zoo, params, std::move(tensors), "file");
  EXPECT_TRUE(problem.ok()) << problem.status();
  auto data = std::make_shared<Dataset>();
  data->problems.push_back(*problem);
  return data;
}

// The four clients of algorithms.md §5.
std::vector<std::shared_ptr<const Dataset>> Q4() {
  const std::vector<std::vector<double>> a = {{1, 0, 0, 2}, {2, .5, .5, 1}, {.5, 0, 0, 3}, {1.5, -.3, -.3, .8}};
  const std::vector<std::vector<double>> b = {{4, 0}, {0, 3}, {-3, -1}, {1, -4}};
  std::vector<std::shared_ptr<const Dataset>> clients;
  for (size_t i = 0; i < 4; ++i) clients.push_back(Client("quadratic", {{"A", Tensor({2, 2}, a[i])}, {"b", Tensor({2}, b[i])}}));
  return clients;
}

class Local {
 public:
  explicit Local(const std::string& local, const std::string& strategy = "fedavg", const std::string& zoo = "quadratic") {
    auto spec = ParseJobSpec("name: t\nmodel: {zoo: " + zoo + "}\ncohort: {size: 1}\ndtype: float64\nlocal: " + local + "\nstrategy: " + strategy + "\n", "t");
    EXPECT_TRUE(spec.ok()) << spec.status();
    spec_ = *std::move(spec);
  }
  // x + Δ after a task that starts from x.
  absl::StatusOr<std::vector<double>> Train(const Dataset& data, std::vector<double> x, int64_t shard = 0, double noise = 0, uint64_t seed = 1) {
    TRIB_ASSIGN_OR_RETURN(const FlatModel model, AnalyticInitialModel(DType::kF64, data.problems));
    TrainRequest request;
    request.spec = &spec_;
    request.layout = &model.layout;
    request.model = std::as_bytes(std::span(x));
    request.seed = seed;
    request.shard = shard;
    request.gradient_noise = noise;
    TRIB_ASSIGN_OR_RETURN(last_, learner_.Train(request, &data));
    std::vector<double> delta(x.size());
    std::memcpy(delta.data(), last_.update.data(), last_.update.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] += delta[i];
    return x;
  }
  const TrainResult& last() const { return last_; }

 private:
  JobSpec spec_;
  AnalyticLearner learner_;
  TrainResult last_;
};

TEST(Analytic, FiveStepsOnTheFourQuadraticsGiveTheWorkedFirstRound) {
  Local local("{steps: 5, lr: 0.1}");
  std::vector<double> mean(2, 0.0);
  for (const auto& client : Q4()) {
    const auto x = local.Train(*client, {0, 0});
    ASSERT_THAT(x, IsOk());
    for (size_t i = 0; i < 2; ++i) mean[i] += (*x)[i] / 4;
  }
  EXPECT_NEAR(mean[0], 0.569165596600, 1e-12);
  EXPECT_NEAR(mean[1], -0.270651496025, 1e-12);
}

TEST(Analytic, StepsAndRatesMayDifferByClient) {
  Local lists("{steps: [1, 2, 3], lr: [0.1, 0.2, 0.3]}");
  Local third("{steps: 3, lr: 0.3}");
  const auto client = Q4()[0];
  EXPECT_EQ(*lists.Train(*client, {1, 1}, 2), *third.Train(*client, {1, 1}));
  EXPECT_EQ(lists.last().metrics.at("train_steps"), 3);
  EXPECT_THAT(lists.Train(*client, {1, 1}, 3).status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("steps has 3 values, client 3")));
}

TEST(Analytic, TheExactSolverMinimisesLossPlusProximalTerm) {
  Local local("{solver: exact}", "{name: fedprox, mu: 0.5}");
  const auto client = Q4()[1];
  const auto w = local.Train(*client, {1, -2});
  ASSERT_THAT(w, IsOk());
  // (A + μI) w = Ab + μx with A = [[2,.5],[.5,1]], b = (0,3), x = (1,−2).
  EXPECT_NEAR(2.5 * (*w)[0] + 0.5 * (*w)[1], 1.5 + 0.5, 1e-14);
  EXPECT_NEAR(0.5 * (*w)[0] + 1.5 * (*w)[1], 3.0 - 1.0, 1e-14);
  Local plain("{solver: exact}");
  const auto b = plain.Train(*client, {1, -2});
  ASSERT_THAT(b, IsOk());
  EXPECT_NEAR((*b)[0], 0, 1e-14);
  EXPECT_NEAR((*b)[1], 3, 1e-14);
}

TEST(Analytic, LeastSquaresHasNoHalfAndNoMean) {
  const auto client = Client("wls", {{"x", Tensor({3, 2}, {1, 0, 0, 1, 1, 1})}, {"y", Tensor({3}, {1, 2, 4})}, {"weights", Tensor({3}, {1, 2, 3})}});
  const AnalyticProblem& problem = *client->problems[0];
  const std::vector<double> w = {0.5, 1};
  EXPECT_NEAR(problem.Loss(w), 1 * 0.25 + 2 * 1 + 3 * 6.25, 1e-12);
  std::vector<double> gradient(2);
  problem.Gradient(w, {}, gradient);
  EXPECT_NEAR(gradient[0], -2 * (1 * 0.5 + 3 * 2.5), 1e-12);
  EXPECT_NEAR(gradient[1], -2 * (2 * 1 + 3 * 2.5), 1e-12);
  Local local("{solver: exact}", "fedavg", "wls");
  const auto best = local.Train(*client, {0, 0});
  ASSERT_THAT(best, IsOk());
  problem.Gradient(*best, {}, gradient);
  EXPECT_NEAR(gradient[0], 0, 1e-12);
  EXPECT_NEAR(gradient[1], 0, 1e-12);
  EXPECT_EQ(local.last().weight, 3);
  const auto flat = Client("wls", {{"x", Tensor({1, 2}, {1, 0})}, {"y", Tensor({1}, {1})}});
  EXPECT_THAT(local.Train(*flat, {0, 0}).status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not unique")));
}

TEST(Analytic, TheGradientsOfClassifiersAreThoseOfTheirLosses) {
  const ProblemTensors data = {{"x", Tensor({4, 2}, {1, .5, -1, 2, .3, -1, 2, 2})}, {"y", Tensor({4}, {0, 1, 2, 1}, true)}};
  for (const std::string zoo : {"softmax", "linear"}) {
    const auto client = Client(zoo, data, {.classes = 3, .l2 = 0.01});
    const AnalyticProblem& problem = *client->problems[0];
    std::vector<double> w(problem.dimension()), gradient(problem.dimension());
    for (size_t i = 0; i < w.size(); ++i) w[i] = std::sin(1.0 + static_cast<double>(i));
    problem.Gradient(w, {}, gradient);
    for (size_t i = 0; i < w.size(); ++i) {
      std::vector<double> up = w, down = w;
      up[i] += 1e-5;
      down[i] -= 1e-5;
      EXPECT_NEAR((problem.Loss(up) - problem.Loss(down)) / 2e-5, gradient[i], 1e-9) << zoo << " element " << i;
    }
  }
}

TEST(Analytic, NewtonEndsWhereTheGradientIsZero) {
  const auto client = Client("softmax", {{"x", Tensor({4, 2}, {1, .5, -1, 2, .3, -1, 2, 2})}, {"y", Tensor({4}, {0, 1, 2, 1}, true)}}, {.classes = 3, .l2 = 1e-3});
  Local local("{solver: exact}", "{name: fedprox, mu: 0.3}", "softmax");
  const std::vector<double> x = {0.1, 0.2, 0.3, -0.4, 0.5, 0.6};
  const auto w = local.Train(*client, x);
  ASSERT_THAT(w, IsOk());
  std::vector<double> gradient(6);
  client->problems[0]->Gradient(*w, {}, gradient);
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(gradient[i] + 0.3 * ((*w)[i] - x[i]), 0, 1e-12);
}

TEST(Analytic, GradientNoiseIsDrawnFromTheSeedAndHasItsDeviation) {
  const auto client = Client("quadratic", {{"A", Tensor({1, 1}, {1e-9})}, {"b", Tensor({1}, {0})}});
  Local local("{steps: 1, lr: 1}");
  const double first = (*local.Train(*client, {0}, 0, 2.0, 7))[0];
  EXPECT_EQ(first, (*local.Train(*client, {0}, 0, 2.0, 7))[0]);
  double squares = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    const double step = (*local.Train(*client, {0}, 0, 2.0, seed))[0];
    squares += step * step;
  }
  EXPECT_NEAR(std::sqrt(squares / 4000), 2.0, 0.1);
}

TEST(Analytic, WrongFilesAreRefusedByName) {
  const auto refusal = [](const std::string& zoo, ProblemTensors tensors) {
    return MessageOf(MakeAnalyticProblem(zoo, {.classes = 2}, std::move(tensors), "a.safetensors").status());
  };
  const ProblemTensor b = Tensor({2}, {1, 2});
  EXPECT_THAT(refusal("quadratic", {{"b", b}}), HasSubstr("a.safetensors: no tensor 'A'"));
  EXPECT_THAT(refusal("quadratic", {{"A", Tensor({2, 1}, {1, 2})}, {"b", b}}), HasSubstr("expected shape [2, 2]"));
  EXPECT_THAT(refusal("quadratic", {{"A", Tensor({2, 2}, {1, 2, 3, 4})}, {"b", b}}), HasSubstr("symmetric"));
  EXPECT_THAT(refusal("quadratic", {{"A", Tensor({2, 2}, {1, 0, 0, NAN})}, {"b", b}}), HasSubstr("not finite"));
  EXPECT_THAT(refusal("quadratic", {{"A", Tensor({2, 2}, {1, 0, 0, 1})}, {"b", b}, {"wieght", Tensor({}, {1})}}), HasSubstr("did you mean 'weight'?"));
  EXPECT_THAT(refusal("wls", {{"x", Tensor({2, 1}, {1, 2})}, {"y", Tensor({3}, {1, 2, 3})}}), HasSubstr("as x has 2 rows"));
  EXPECT_THAT(refusal("softmax", {{"x", Tensor({2, 1}, {1, 2})}, {"y", b}}), HasSubstr("integer classes"));
  EXPECT_THAT(refusal("softmax", {{"x", Tensor({2, 1}, {1, 2})}, {"y", Tensor({2}, {0, 2}, true)}}), HasSubstr("class 2, expected 0 to 1"));
}

}  // namespace
}  // namespace tributary::client
