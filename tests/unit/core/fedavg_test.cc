// FedAvg and FedAvgM against values computed by hand and the published trajectory of problem Q4 (algorithms.md §5).
#include <gmock/gmock.h>

#include <array>

#include "aggregator/core/partial.h"
#include "aggregator/core/strategy.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"
#include "tests/unit/core/memory_federation.h"

namespace tributary::aggregator {
namespace {

// One server with a strategy, driven without any engine.
class Server {
 public:
  explicit Server(StrategySpec spec, Arithmetic arithmetic = Arithmetic::kFloat64) : arithmetic_(arithmetic) {
    auto strategy = MakeStrategy(spec);
    EXPECT_TRUE(strategy.ok()) << strategy.status().ToString();
    strategy_ = *std::move(strategy);
  }
  void Commit(const std::vector<std::pair<Point, double>>& updates) {
    const TensorLayout layout = VectorLayout(2, DType::kF64);
    Partial partial(layout, arithmetic_, static_cast<int64_t>(updates.size()));
    for (size_t i = 0; i < updates.size(); ++i) {
      const absl::Status status =
          partial.Accumulate(Id(i), AsBytes<double>({updates[i].first[0], updates[i].first[1]}),
                             *strategy_->weights().Weight({.client = "", .claimed = updates[i].second}));
      ASSERT_TRUE(status.ok()) << status.ToString();
    }
    const StatePiece whole{.first = 0, .count = 2, .state = partial.state().data()};
    std::vector<std::byte> next(16);
    const std::vector<std::byte> previous = AsBytes<double>({x[0], x[1]});
    const absl::Status status = ApplyServerStep(
        strategy_->server_step(),
        {.layout = &layout, .reducer = &partial.reducer(), .pieces = {&whole, 1}, .counters = {}, .previous = previous, .base = {},
         .facts = {.version = 1, .sum_weight = partial.sum_weight(), .registered = 4, .contributors = {}}},
        state_, next);
    ASSERT_TRUE(status.ok()) << status.ToString();
    const std::vector<double> values = FromBytes<double>(next);
    x = {values[0], values[1]};
  }
  void CommitQ4(int steps, double lr) {
    std::vector<std::pair<Point, double>> updates;
    for (const Quadratic& problem : kQ4) updates.push_back({problem.Delta(x, steps, lr), 1.0});
    Commit(updates);
  }
  Point x = {0, 0};

 private:
  Arithmetic arithmetic_;
  std::unique_ptr<Strategy> strategy_;
  StrategyState state_;
};

void ExpectPoint(const Point& got, const Point& expected, double tolerance) {
  EXPECT_NEAR(got[0], expected[0], tolerance);
  EXPECT_NEAR(got[1], expected[1], tolerance);
}

TEST(FedAvgTest, IsTheWeightedMeanByHand) {
  Server server({.name = "fedavg", .params = {}});
  server.x = {10, -1};
  server.Commit({{{1, 2}, 1}, {{4, -6}, 3}});  // (1 + 12)/4, (2 − 18)/4
  ExpectPoint(server.x, {13.25, -5}, 0);
}

TEST(FedAvgTest, ServerLearningRateScalesTheStep) {
  Server server({.name = "fedavg", .params = {{"server_lr", "0.5"}, {"weighting", "uniform"}}});
  server.Commit({{{1, 2}, 1}, {{4, -6}, 3}});
  ExpectPoint(server.x, {1.25, -1}, 0);
}

TEST(FedAvgTest, FollowsTheTrajectoryOfQ4) {
  constexpr std::array<Point, 5> kExpected = {{{0.569165596600, -0.270651496025},
                                               {0.878665411869, -0.395952336956},
                                               {1.046747043318, -0.454419238418},
                                               {1.137932672002, -0.481936038292},
                                               {1.187359801895, -0.495006690313}}};
  for (const Arithmetic arithmetic : {Arithmetic::kFloat64, Arithmetic::kFixedPoint}) {
    Server server({.name = "fedavg", .params = {}}, arithmetic);
    for (const Point& expected : kExpected) {
      server.CommitQ4(5, 0.1);
      // The values have 12 digits; fixed point rounds to 2^-40 = 9e-13 a term and round.
      ExpectPoint(server.x, expected, arithmetic == Arithmetic::kFloat64 ? 1e-12 : 5e-12);
    }
  }
}

TEST(FedAvgTest, ConvergesToTheFixedPointOfQ4) {
  Server drifting({.name = "fedavg", .params = {}});
  for (int r = 0; r < 300; ++r) drifting.CommitQ4(5, 0.1);
  ExpectPoint(drifting.x, {1.245707967680, -0.507283409682}, 1e-11);
  Server one_step({.name = "fedavg", .params = {}});
  for (int r = 0; r < 2000; ++r) one_step.CommitQ4(1, 0.1);
  ExpectPoint(one_step.x, {1.3621908127208482, -0.5547703180212015}, 1e-12);
}

TEST(FedAvgMTest, KeepsMomentumByHand) {
  Server server({.name = "fedavgm", .params = {{"beta", "0.5"}, {"server_lr", "2"}}});
  server.Commit({{{1, -1}, 2}});   // v = (1, −1), x = (2, −2)
  ExpectPoint(server.x, {2, -2}, 0);
  server.Commit({{{3, 0}, 5}});    // v = (3.5, −0.5), x = (9, −3)
  ExpectPoint(server.x, {9, -3}, 0);
  server.Commit({{{0, 0}, 1}});    // v = (1.75, −0.25): it rolls on
  ExpectPoint(server.x, {12.5, -3.5}, 0);
}

TEST(FedAvgMTest, WithoutMomentumIsFedAvg) {
  Server plain({.name = "fedavg", .params = {}}), momentum({.name = "fedavgm", .params = {{"beta", "0"}}});
  for (int r = 0; r < 5; ++r) {
    plain.CommitQ4(5, 0.1);
    momentum.CommitQ4(5, 0.1);
  }
  ExpectPoint(momentum.x, plain.x, 0);
}

TEST(FedAvgMTest, ReachesFedAvgsFixedPoint) {
  Server server({.name = "fedavgm", .params = {{"server_lr", "0.3"}}});
  for (int r = 0; r < 1500; ++r) server.CommitQ4(5, 0.1);
  ExpectPoint(server.x, {1.245707967680, -0.507283409682}, 1e-11);
}

}  // namespace
}  // namespace tributary::aggregator
