// The server halves of the momentum family and of ADMM, with clients that follow the step table of algorithms.md §3 on the quadratics of §5.
#include "aggregator/core/job_check.h"
#include "aggregator/core/momentum.h"

#include <gmock/gmock.h>

#include "aggregator/core/aggregate.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/memory_federation.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::StatusIs;

const Point kOptimum = {1.3621908127208482, -0.5547703180212015};

Point Gradient(const Quadratic& problem, const Point& y) {
  const double d0 = y[0] - problem.b[0], d1 = y[1] - problem.b[1];
  return {problem.a[0] * d0 + problem.a[1] * d1, problem.a[2] * d0 + problem.a[3] * d1};
}

// argmin f(w) + ⟨v, w⟩ + (ρ/2)‖w − s‖²: (A + ρI) w = A b − v + ρ s.
Point Solve(const Quadratic& p, const Point& v, double rho, const Point& s) {
  const double a = p.a[0] + rho, b = p.a[1], c = p.a[2], d = p.a[3] + rho;
  const double r0 = p.a[0] * p.b[0] + p.a[1] * p.b[1] - v[0] + rho * s[0], r1 = p.a[2] * p.b[0] + p.a[3] * p.b[1] - v[1] + rho * s[1];
  const double det = a * d - b * c;
  return {(d * r0 - b * r1) / det, (a * r1 - c * r0) / det};
}

// One server of any strategy; what a client sends is up to the test.
class MomentumServer {
 public:
  MomentumServer(StrategySpec spec, LocalSpec local, Point start = {0, 0}) : x(start), local_(local) {
    auto made = MakeStrategy(spec, local);
    EXPECT_THAT(made, tributary::testing::IsOk());
    strategy_ = *std::move(made);
    EXPECT_THAT(PrepareState(*strategy_, layout_, AsBytes<double>({x[0], x[1]}), &state_.strategy), tributary::testing::IsOk());
  }
  Point Vector(const std::string& name) const {
    const std::vector<double>& values = state_.strategy.vectors.at(name);
    return {values[0], values[1]};
  }
  bool Sends(const std::string& group) const {
    const std::vector<std::string> groups = strategy_->update_groups();
    return std::find(groups.begin(), groups.end(), group) != groups.end();
  }
  // `groups` of each participant, in the order of update_groups(); N = 4.
  void Commit(const std::vector<std::pair<int, std::vector<Point>>>& updates) {
    Aggregate aggregate(*strategy_, layout_, Arithmetic::kFloat64, 10);
    std::vector<RoundContributor> contributors;
    for (const auto& [client, groups] : updates) {
      std::vector<double> flat;
      for (const Point& group : groups) flat.insert(flat.end(), group.begin(), group.end());
      RoundContributor contributor;
      contributor.key = {.client = std::to_string(client), .task = 1, .update = Id(++updates_)};
      contributor.weight = 1;
      ASSERT_THAT(aggregate.Fold(contributor, AsBytes(flat)), tributary::testing::IsOk());
      contributors.push_back(contributor);
    }
    const std::vector<std::byte> previous = AsBytes<double>({x[0], x[1]});
    std::vector<std::byte> next(16);
    ASSERT_THAT(aggregate.Step({.facts = {.version = ++version, .sum_weight = static_cast<double>(updates.size()), .registered = 4, .contributors = contributors},
                                .previous = previous, .base = {}},
                               &state_, next),
                tributary::testing::IsOk());
    const std::vector<double> values = FromBytes<double>(next);
    x = {values[0], values[1]};
  }
  Point x;
  uint64_t version = 0;
  const LocalSpec& local() const { return local_; }

 private:
  const TensorLayout layout_ = VectorLayout(2, DType::kF64);
  LocalSpec local_;
  std::unique_ptr<Strategy> strategy_;
  MemoryState state_;
  uint64_t updates_ = 0;
};

struct Factors {
  double beta = 1;
  bool momentum = false, control = false, reduced = false, warm_start = false;
};

// One round of the clients `participants`; `c` are their control variates.
void RunRound(MomentumServer* server, const Factors& f, const std::vector<int>& participants, std::array<Point, 4>* c) {
  const double lr = server->local().lr;
  const auto steps = static_cast<int>(server->local().steps);
  const Point zero{};
  const Point g = f.momentum ? server->Vector("g") : zero;
  const Point common = f.control ? server->Vector("c") : zero;
  const bool resting = f.warm_start && server->version <= 1;  // x⁻ = x
  const double gamma = server->version == 0 || resting ? 0 : lr * steps;
  const Point before = {server->x[0] + gamma * g[0], server->x[1] + gamma * g[1]};
  std::vector<std::pair<int, std::vector<Point>>> updates;
  for (const int client : participants) {
    const Quadratic& problem = kQ4[static_cast<size_t>(client)];
    Point& own = (*c)[static_cast<size_t>(client)];
    Point y = server->x, mean{};
    const bool warming = f.warm_start && server->version == 0;
    for (int k = 0; k < steps; ++k) {
      const Point fresh = Gradient(problem, y), old = Gradient(problem, before);
      for (size_t i = 0; i < 2; ++i) {
        mean[i] += fresh[i] / steps;
        const double b = f.reduced ? -(1 - f.beta) : 0;
        const double a = f.reduced ? 1 : f.beta;
        const double v = f.beta * (common[i] - own[i]) + (1 - f.beta) * g[i];
        if (!warming) y[i] -= lr * (a * fresh[i] + b * old[i] + v);
      }
    }
    Point delta = {y[0] - server->x[0], y[1] - server->x[1]};
    if (warming) delta = {-lr * steps * mean[0], -lr * steps * mean[1]};
    const Point change = {mean[0] - own[0], mean[1] - own[1]};
    if (f.control) own = mean;
    std::vector<Point> groups;
    if (server->Sends("")) groups.push_back(delta);
    if (server->Sends("control")) groups.push_back(change);
    updates.emplace_back(client, groups);
  }
  server->Commit(updates);
}

LocalSpec Local(double lr, int64_t steps) {
  LocalSpec local;
  local.lr = lr;
  local.steps = steps;
  return local;
}

const std::vector<std::vector<int>> kHalf = {{0, 1}, {2, 3}, {0, 2}, {1, 3}, {0, 3}, {1, 2}};

TEST(ScaffoldTest, FollowsTheGoldenPathWithFullAndHalvedUplink) {
  const std::vector<Point> golden = {{0.345368427237, -0.170744434251}, {0.621733956304, -0.297408023552}, {0.825185643939, -0.383816213620}};
  for (const char* uplink : {"full", "delta", "auto"}) {
    MomentumServer server({.name = "scaffold", .params = {{"uplink", uplink}}}, Local(0.05, 5));
    std::array<Point, 4> c{};
    for (const Point& expected : golden) {
      RunRound(&server, {.control = true}, {0, 1, 2, 3}, &c);
      EXPECT_NEAR(server.x[0], expected[0], 1e-9) << uplink;
      EXPECT_NEAR(server.x[1], expected[1], 1e-9) << uplink;
    }
  }
}

TEST(ScaffoldTest, HalvedUplinkIsTheFullOneUnderPartialParticipation) {
  for (const bool momentum : {false, true}) {
    const std::string name = momentum ? "scaffold_m" : "scaffold";
    ParamMap params = momentum ? ParamMap{{"beta", "0.2"}} : ParamMap{};
    ParamMap delta = params;
    params["uplink"] = "full";
    delta["uplink"] = "delta";
    MomentumServer full({.name = name, .params = params}, Local(0.05, 5)), half({.name = name, .params = delta}, Local(0.05, 5));
    std::array<Point, 4> c_full{}, c_half{};
    const Factors f{.beta = momentum ? 0.2 : 1, .momentum = momentum, .control = true};
    for (size_t round = 0; round < 60; ++round) {
      RunRound(&full, f, kHalf[round % kHalf.size()], &c_full);
      RunRound(&half, f, kHalf[round % kHalf.size()], &c_half);
      ASSERT_NEAR(full.x[0], half.x[0], 1e-12) << name << ", round " << round;
      ASSERT_NEAR(full.x[1], half.x[1], 1e-12) << name << ", round " << round;
    }
  }
}

TEST(ScaffoldTest, TheFamilyEndsAtTheOptimumWithHalfTheClients) {
  const std::vector<std::pair<StrategySpec, Factors>> family = {
      {{.name = "scaffold", .params = {}}, {.control = true}},
      {{.name = "scaffold_m", .params = {{"beta", "0.3"}}}, {.beta = 0.3, .momentum = true, .control = true}},
      {{.name = "scaffold_m_vr", .params = {{"beta", "0.3"}, {"warm_start", "false"}}}, {.beta = 0.3, .momentum = true, .control = true, .reduced = true}},
      {{.name = "scaffold_m_vr", .params = {{"beta", "0.3"}}}, {.beta = 0.3, .momentum = true, .control = true, .reduced = true, .warm_start = true}}};
  for (const auto& [spec, f] : family) {
    MomentumServer server(spec, Local(0.05, 5));
    std::array<Point, 4> c{};
    RunRound(&server, f, {0, 1, 2, 3}, &c);
    for (size_t round = 0; round < 4000; ++round) RunRound(&server, f, kHalf[round % kHalf.size()], &c);
    EXPECT_NEAR(server.x[0], kOptimum[0], 1e-9) << spec.name;
    EXPECT_NEAR(server.x[1], kOptimum[1], 1e-9) << spec.name;
  }
}

TEST(MomentumTest, ClientMomentumEndsWhereFedAvgEndsAtBetaTimesTheRate) {
  // FedAvg's fixed point by its own iteration.
  const auto fedavg = [](double lr) {
    Point x{};
    for (int round = 0; round < 3000; ++round) {
      Point sum{};
      for (const Quadratic& problem : kQ4) {
        const Point delta = problem.Delta(x, 5, lr);
        for (size_t i = 0; i < 2; ++i) sum[i] += delta[i] / 4;
      }
      for (size_t i = 0; i < 2; ++i) x[i] += sum[i];
    }
    return x;
  };
  for (const bool reduced : {false, true}) {
    const std::string name = reduced ? "fedavg_m_vr" : "fedavg_m";
    MomentumServer server({.name = name, .params = {{"beta", "0.2"}}}, Local(0.1, 5));
    const Factors f{.beta = 0.2, .momentum = true, .control = false, .reduced = reduced, .warm_start = reduced};
    std::array<Point, 4> c{};
    for (int round = 0; round < 3000; ++round) RunRound(&server, f, {0, 1, 2, 3}, &c);
    const Point expected = fedavg(reduced ? 0.1 : 0.02);
    EXPECT_NEAR(server.x[0], expected[0], 1e-9) << name;
    EXPECT_NEAR(server.x[1], expected[1], 1e-9) << name;
  }
}

TEST(MomentumTest, WarmStartMakesTheMeanGradientAndLeavesTheModel) {
  MomentumServer server({.name = "fedavg_m_vr", .params = {}}, Local(0.1, 5), {0.5, -0.25});
  std::array<Point, 4> c{};
  RunRound(&server, {.beta = 0.1, .momentum = true, .reduced = true, .warm_start = true}, {0, 1, 2, 3}, &c);
  EXPECT_EQ(server.x, (Point{0.5, -0.25}));
  Point mean{};
  for (const Quadratic& problem : kQ4) {
    const Point g = Gradient(problem, {0.5, -0.25});
    for (size_t i = 0; i < 2; ++i) mean[i] += g[i] / 4;
  }
  EXPECT_NEAR(server.Vector("g")[0], mean[0], 1e-12);
  EXPECT_NEAR(server.Vector("g")[1], mean[1], 1e-12);
}

TEST(LocalSolverTest, AdamWGoesWithStrategiesThatTakeAChangeAsItIs) {
  JobSpec spec;
  spec.cohort.size = 2;
  spec.local.solver = "adamw";
  spec.local.steps = 5;
  const auto check = [&](const std::string& name, ParamMap params = {}) {
    spec.strategy = {.name = name, .params = std::move(params)};
    return CheckJob(spec, **MakeStrategy(spec.strategy, spec.local), VectorLayout(3));
  };
  for (const char* name : {"fedavg", "fedprox", "fedadam", "fedbuff", "fedau"}) EXPECT_THAT(check(name), tributary::testing::IsOk()) << name;
  for (const char* name : {"fednova", "qfedavg", "scaffold", "fedavg_m", "fedadmm", "rerce_admm"}) {
    EXPECT_THAT(check(name), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.solver"))) << name;
  }
}

TEST(MomentumTest, WhatDoesNotGoWithTheFamilyIsRefusedAtSubmission) {
  JobSpec spec;
  spec.cohort.size = 2;
  const auto check = [&](const std::string& name, ParamMap params) {
    spec.strategy = {.name = name, .params = std::move(params)};
    return (*MakeStrategy(spec.strategy, spec.local))->CheckJob(spec);
  };
  spec.local.steps = 5;
  for (const char* name : {"fedavg_m", "fedavg_m_vr", "scaffold", "scaffold_m", "scaffold_m_vr"}) EXPECT_THAT(check(name, {}), tributary::testing::IsOk()) << name;
  spec.local.momentum = 0.9;
  EXPECT_THAT(check("scaffold", {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.momentum")));
  spec.local.momentum = 0;
  spec.local.steps = 0;
  EXPECT_THAT(check("scaffold", {}), tributary::testing::IsOk());  // the full uplink does without
  EXPECT_THAT(check("scaffold", {{"uplink", "delta"}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.steps")));
  EXPECT_THAT(check("fedavg_m", {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.steps")));
  EXPECT_THAT(MakeStrategy({.name = "scaffold_m_vr", .params = {{"uplink", "delta"}}}).status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("uplink")));
}

TEST(AdmmTest, RerceIsDualFirstAdmmOnCleanLinks) {
  for (const Point start : {Point{0, 0}, Point{2, -1}}) {
    for (const double rho : {0.5, 10.0}) {
      MomentumServer server({.name = "rerce_admm", .params = {{"rho", fmt::format("{}", rho)}}}, {}, start);
      std::array<Point, 4> h{};                  // ∇f_i(w_i)
      std::array<Point, 4> w{}, lambda{};        // of plain ADMM
      Point x = start;
      w.fill(start);
      for (int round = 0; round < 40; ++round) {
        const Point s = server.Vector("s");
        std::vector<std::pair<int, std::vector<Point>>> updates;
        Point mean{};
        for (size_t k = 0; k < 4; ++k) {
          const Point own = Solve(kQ4[k], {-h[k][0], -h[k][1]}, rho, s);
          h[k] = Gradient(kQ4[k], own);
          updates.push_back({static_cast<int>(k), {own}});
          for (size_t i = 0; i < 2; ++i) {
            if (round > 0) lambda[k][i] += rho * (w[k][i] - x[i]);
          }
          w[k] = Solve(kQ4[k], lambda[k], rho, x);
          for (size_t i = 0; i < 2; ++i) mean[i] += (w[k][i] + lambda[k][i] / rho) / 4;
        }
        server.Commit(updates);
        x = mean;
        ASSERT_NEAR(server.x[0], x[0], 1e-12) << "rho " << rho << ", round " << round;
        ASSERT_NEAR(server.x[1], x[1], 1e-12) << "rho " << rho << ", round " << round;
      }
    }
  }
}

TEST(AdmmTest, TheAuthorsScriptForgetsThePreviousModelOnce) {
  MomentumServer exact({.name = "rerce_admm", .params = {}}, {}, {1, 1}), authors({.name = "rerce_admm", .params = {{"compat_authors", "true"}}}, {}, {1, 1});
  for (const Point& value : {Point{3, 5}, Point{4, 4}}) {
    exact.Commit({{0, {value}}});
    authors.Commit({{0, {value}}});
  }
  EXPECT_EQ(exact.Vector("s"), (Point{5, 3}));    // 2·4 − 3, 2·4 − 5
  EXPECT_EQ(authors.Vector("s"), (Point{8, 8}));
  exact.Commit({{0, {Point{1, 1}}}});
  authors.Commit({{0, {Point{1, 1}}}});
  EXPECT_EQ(exact.Vector("s"), authors.Vector("s"));
}

TEST(AdmmTest, FedAdmmEndsAtTheOptimumWithHalfTheClients) {
  for (const Point start : {Point{0, 0}, Point{2, -1}}) {
    const double rho = 1;
    MomentumServer server({.name = "fedadmm", .params = {}}, {}, start);
    std::array<Point, 4> lambda{};
    for (size_t round = 0; round < 3000; ++round) {
      std::vector<std::pair<int, std::vector<Point>>> updates;
      for (const int client : kHalf[round % kHalf.size()]) {
        const auto k = static_cast<size_t>(client);
        const Point w = Solve(kQ4[k], lambda[k], rho, server.x);
        Point u;
        for (size_t i = 0; i < 2; ++i) {
          lambda[k][i] += rho * (w[i] - server.x[i]);
          u[i] = w[i] + lambda[k][i] / rho;
        }
        updates.push_back({client, {u}});
      }
      server.Commit(updates);
    }
    EXPECT_NEAR(server.x[0], kOptimum[0], 1e-9);
    EXPECT_NEAR(server.x[1], kOptimum[1], 1e-9);
  }
}

TEST(AdmmTest, AContinualTableIsTheMeanOfAllRowsReceivedLast) {
  MomentumServer server({.name = "rerce_admm", .params = {{"continual", "true"}}}, {}, {7, 7});
  server.Commit({{0, {Point{4, 8}}}, {1, {Point{8, 0}}}, {2, {Point{0, 0}}}, {3, {Point{4, 4}}}});
  EXPECT_EQ(server.x, (Point{4, 3}));
  server.Commit({{1, {Point{0, 4}}}});
  EXPECT_EQ(server.x, (Point{2, 4}));
}

}  // namespace
}  // namespace tributary::aggregator
