// fedau, known_p, mifa, fedvarp, fednova, qfedavg and the adaptive three through the engine, against the rules of algorithms.md §6–§9
// written out here.
#include <gmock/gmock.h>

#include <cmath>
#include <functional>

#include "tests/support/status_matchers.h"
#include "tests/unit/core/memory_federation.h"

namespace tributary::aggregator {
namespace {

// Who takes part in each round: two of four, then three, then one, …
const std::vector<std::vector<int>> kSchedule = {{0, 1}, {2}, {}, {0, 3}, {1, 2, 3}, {0}, {0, 1, 2, 3}, {3}, {1}, {}, {0, 2}, {1, 3}};

constexpr int kSteps = 5;
constexpr double kRate = 0.1;

// The rule's next model, from the one before and what the participants send.
using Rule = std::function<Point(const Point& x, const std::vector<int>& participants, size_t round)>;

Point DeltaOf(int client, const Point& x) { return kQ4[static_cast<size_t>(client)].Delta(x, kSteps, kRate); }

// Plays the schedule; a round's cohort is who is attached in it.
std::vector<Point> Play(const StrategySpec& strategy, const std::vector<std::vector<int>>& schedule, bool restart_every_round = false,
                        const std::function<Scalars(int, const Point&)>& scalars = nullptr) {
  MemoryFederation federation(strategy, 4);
  federation.Register({"0", "1", "2", "3"});
  for (const std::vector<int>& participants : schedule) {
    federation.SetCohort(static_cast<int64_t>(participants.size()));
    if (participants.empty()) federation.Skip();
    for (const int client : participants) federation.Idle(std::to_string(client));
    const Point x = federation.x();
    for (const int client : participants) {
      federation.Upload(std::to_string(client), kSteps, kRate, 1, scalars ? scalars(client, x) : Scalars());
    }
    for (const int client : participants) federation.Gone(std::to_string(client));
    if (restart_every_round) {
      federation.Restart();
      federation.Register({"0", "1", "2", "3"});
    }
  }
  return federation.models();
}

void ExpectPath(const StrategySpec& strategy, const std::vector<std::vector<int>>& schedule, const Rule& rule,
                const std::function<Scalars(int, const Point&)>& scalars = nullptr) {
  const std::vector<Point> models = Play(strategy, schedule, false, scalars);
  ASSERT_EQ(models.size(), schedule.size() + 1) << strategy.name;
  Point x = {0, 0};
  for (size_t round = 0; round < schedule.size(); ++round) {
    if (!schedule[round].empty()) {
      x = rule(x, schedule[round], round);
    } else {
      rule(x, {}, round);
    }
    EXPECT_NEAR(models[round + 1][0], x[0], 1e-12) << strategy.name << ", round " << round;
    EXPECT_NEAR(models[round + 1][1], x[1], 1e-12) << strategy.name << ", round " << round;
  }
  EXPECT_EQ(Play(strategy, schedule, true, scalars), models) << strategy.name << ": a restart shows";
}

TEST(ParticipationTest, FedAuDividesByAllClientsAndWeighsByClosedIntervals) {
  for (const double cutoff : {50.0, 3.0}) {
    struct Seen { double sum = 0, count = 0, miss = 0; };
    std::array<Seen, 4> seen{};
    const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t) {
      Point next = x;
      for (int client = 0; client < 4; ++client) {
        Seen& s = seen[static_cast<size_t>(client)];
        const double omega = s.count == 0 ? 1 : s.sum / s.count;
        if (std::find(participants.begin(), participants.end(), client) != participants.end()) {
          const Point delta = DeltaOf(client, x);
          for (size_t i = 0; i < 2; ++i) next[i] += omega * delta[i] / 4;
          s.sum += s.miss + 1;
          s.count += 1;
          s.miss = 0;
        } else if (++s.miss >= cutoff) {
          s.sum += s.miss;
          s.count += 1;
          s.miss = 0;
        }
      }
      return next;
    };
    ExpectPath({.name = "fedau", .params = {{"cutoff", fmt::format("{}", cutoff)}}}, kSchedule, rule);
  }
}

TEST(ParticipationTest, KnownPDividesEachByItsProbability) {
  const std::array<double, 4> p = {0.5, 0.4, 0.25, 0.8};
  const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t) {
    Point next = x;
    for (const int client : participants) {
      for (size_t i = 0; i < 2; ++i) next[i] += DeltaOf(client, x)[i] / p[static_cast<size_t>(client)] / 4;
    }
    return next;
  };
  ExpectPath({.name = "known_p", .params = {{"p", "0.5, 0.4, 0.25, 0.8"}}}, kSchedule, rule);
  ExpectPath({.name = "known_p", .params = {{"p", "2=0.25, 0=0.5, 1=0.4, 3=0.8"}, {"clients", "4"}}}, kSchedule, rule);
}

TEST(ParticipationTest, MifaAveragesTheRowsOnceTheNewOnesAreIn) {
  std::array<Point, 4> rows{};
  const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t) {
    for (const int client : participants) rows[static_cast<size_t>(client)] = DeltaOf(client, x);
    Point next = x;
    for (const Point& row : rows) {
      for (size_t i = 0; i < 2; ++i) next[i] += row[i] / 4;
    }
    return next;
  };
  ExpectPath({.name = "mifa", .params = {}}, kSchedule, rule);
}

TEST(ParticipationTest, FedVarpUsesRowsAndTheirMeanFromBefore) {
  std::array<Point, 4> rows{};
  const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t) {
    if (participants.empty()) return x;
    Point next = x;
    for (const Point& row : rows) {
      for (size_t i = 0; i < 2; ++i) next[i] += row[i] / 4;
    }
    for (const int client : participants) {
      Point& row = rows[static_cast<size_t>(client)];
      const Point delta = DeltaOf(client, x);
      for (size_t i = 0; i < 2; ++i) next[i] += (delta[i] - row[i]) / static_cast<double>(participants.size());
      row = delta;
    }
    return next;
  };
  ExpectPath({.name = "fedvarp", .params = {}}, kSchedule, rule);
}

TEST(ParticipationTest, FedNovaNormalisesEachByItsSteps) {
  const std::array<double, 4> norm = {5, 3, 9.5, 2};
  const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t) {
    const double n = static_cast<double>(participants.size());
    double effective = 0;
    Point direction{};
    for (const int client : participants) {
      effective += norm[static_cast<size_t>(client)] / n;
      for (size_t i = 0; i < 2; ++i) direction[i] += DeltaOf(client, x)[i] / norm[static_cast<size_t>(client)] / n;
    }
    if (participants.empty()) return x;
    return Point{x[0] + effective * direction[0], x[1] + effective * direction[1]};
  };
  ExpectPath({.name = "fednova", .params = {}}, kSchedule, rule,
             [&](int client, const Point&) { return Scalars{{"step_norm", norm[static_cast<size_t>(client)]}}; });
}

TEST(ParticipationTest, QFedAvgFollowsThePapersStep) {
  for (const double q : {0.0, 1.0, 2.0}) {
    const double lipschitz = 1 / kRate;
    const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t) {
      if (participants.empty()) return x;
      Point numerator{};
      double denominator = 0;
      for (const int client : participants) {
        const double loss = kQ4[static_cast<size_t>(client)].Loss(x) + 1e-10;
        const Point delta = DeltaOf(client, x);
        const double squares = lipschitz * lipschitz * (delta[0] * delta[0] + delta[1] * delta[1]);
        for (size_t i = 0; i < 2; ++i) numerator[i] += std::pow(loss, q) * lipschitz * delta[i];
        denominator += q * std::pow(loss, q - 1) * squares + lipschitz * std::pow(loss, q);
      }
      return Point{x[0] + numerator[0] / denominator, x[1] + numerator[1] / denominator};
    };
    ExpectPath({.name = "qfedavg", .params = {{"q", fmt::format("{}", q)}, {"lipschitz", "10"}}}, kSchedule, rule,
               [&](int client, const Point& x) { return Scalars{{"initial_loss", kQ4[static_cast<size_t>(client)].Loss(x)}}; });
  }
}

TEST(ParticipationTest, TheAdaptiveThreeFollowTheirSecondMoments) {
  for (const std::string name : {"fedadam", "fedyogi", "fedadagrad"}) {
    for (const bool correct : {false, true}) {
      const double beta1 = 0.8, beta2 = 0.95, tau = 0.01, lr = 0.1, start = 0.04;
      Point m{}, v = {start, start};
      const Rule rule = [&](const Point& x, const std::vector<int>& participants, size_t round) {
        if (participants.empty()) return x;
        Point next = x;
        for (size_t i = 0; i < 2; ++i) {
          double d = 0;
          for (const int client : participants) d += DeltaOf(client, x)[i] / static_cast<double>(participants.size());
          m[i] = beta1 * m[i] + (1 - beta1) * d;
          if (name == "fedadam") v[i] = beta2 * v[i] + (1 - beta2) * d * d;
          if (name == "fedyogi") v[i] -= (1 - beta2) * d * d * (v[i] > d * d ? 1 : -1);
          if (name == "fedadagrad") v[i] += d * d;
          const double r = static_cast<double>(round) + 1;
          const double m1 = correct ? m[i] / (1 - std::pow(beta1, r)) : m[i];
          const double v1 = correct && name != "fedadagrad" ? v[i] / (1 - std::pow(beta2, r)) : v[i];
          next[i] += lr * m1 / (std::sqrt(v1) + tau);
        }
        return next;
      };
      ParamMap params = {{"server_lr", "0.1"}, {"beta1", "0.8"}, {"tau", "0.01"}, {"initial_v", "0.04"}, {"bias_correction", correct ? "true" : "false"}};
      if (name != "fedadagrad") params["beta2"] = "0.95";
      ExpectPath({.name = name, .params = params}, kSchedule, rule);
    }
  }
}

TEST(ParticipationTest, ScalarsAreAskedForByName) {
  const auto strategy = MakeStrategy({.name = "fednova", .params = {}});
  using tributary::testing::StatusIs;
  EXPECT_THAT(CheckScalars(**strategy, {}), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("'step_norm' is missing")));
  EXPECT_THAT(CheckScalars(**strategy, {{"step_norm", 0}}), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("> 0")));
  EXPECT_THAT(CheckScalars(**strategy, {{"step_norm", 1}, {"loss", 2}}), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("'loss'")));
  EXPECT_THAT(CheckScalars(**strategy, {{"step_norm", 1}}), tributary::testing::IsOk());
}

}  // namespace
}  // namespace tributary::aggregator
