// The server's half of EGGROLL through the strategy's public interface: by hand, by symmetry, against the true gradient, and to a minimum.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/job_check.h"
#include "common/eggroll_spec.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

using FitnessOf = std::map<std::string, std::vector<double>>;  // by client

TensorLayout DenseLayer(int64_t rows, int64_t columns, DType dtype = DType::kF32) {
  return LayoutOf({{.name = "fc.weight", .shape = {rows, columns}, .dtype = dtype, .kind = TensorKind::kTrainable},
                   {.name = "fc.bias", .shape = {rows}, .dtype = dtype, .kind = TensorKind::kTrainable}});
}

JobSpec EggrollJob(ParamMap params, int64_t clients) {
  JobSpec job;
  job.seed = 5;
  job.strategy = {.name = "eggroll", .params = std::move(params)};
  job.local.solver = kEggrollSolver;
  job.cohort.size = clients;
  return job;
}

// A model and its commits.
class Population {
 public:
  Population(ParamMap params, int64_t clients, TensorLayout layout)
      : job_(EggrollJob(std::move(params), clients)), strategy_(*StrategyOf(job_)), layout_(std::move(layout)), model_(layout_.total_bytes()) {}

  absl::Status Commit(const FitnessOf& fitness) {
    Aggregate aggregate(*strategy_, layout_, Arithmetic::kFixedPoint, job_.cohort.size);
    std::vector<RoundContributor> contributors;
    for (const auto& [client, values] : fitness) {
      RoundContributor contributor{.key = {.client = client, .task = contributors.size() + 1, .update = Id(contributors.size())}, .weight = 1};
      const std::vector<std::byte> bytes = layout_.float_dtype() == DType::kF64 ? AsBytes(values) : AsBytes(ToFloats(values));
      if (const absl::Status folded = aggregate.Fold(contributor, bytes); !folded.ok()) return folded;
      contributors.push_back(contributor);
    }
    std::vector<std::byte> next(layout_.total_bytes());
    const absl::Status stepped = aggregate.Step({.facts = {.version = ++version_, .sum_weight = static_cast<double>(contributors.size()), .contributors = contributors},
                                                 .previous = model_, .base = {}},
                                                &state_, next);
    if (stepped.ok()) model_ = next;
    return stepped;
  }
  std::vector<double> Weights() const {
    std::vector<double> values;
    for (size_t i = 0; i < layout_.float_count(); ++i) values.push_back(FloatAt(layout_, model_, i));
    return values;
  }
  // Σ_k A_k·B_kᵀ of a pair of this client in the next version.
  std::vector<float> Noise(const std::string& client, uint32_t pair) const {
    std::vector<float> noise(layout_.trainable_count());
    EggrollNoise(EggrollTensors(layout_, EggrollSpec::Of(job_.strategy)->rank), strategy_->noise_seed(client, version_), pair, noise);
    return noise;
  }
  const MemoryState& state() const { return state_; }
  const Strategy& strategy() const { return *strategy_; }

 private:
  JobSpec job_;
  std::unique_ptr<Strategy> strategy_;
  TensorLayout layout_;
  std::vector<std::byte> model_;
  MemoryState state_;
  uint64_t version_ = 0;
};

// f = (3, 1): mean 2, variance 1, z = ±1/√(1 + 1e-5); Z = ±llrint(1048570.757…) = ±1048571. With N = 2, r = 1, η = .5, σ = .25:
// c = .5·.25·2⁻²⁰/√2, and S = 2·1048571·a·bᵀ.
TEST(EggrollStrategyTest, TwoMembersOfRankOneMakeTheUpdateThatIsMadeByHand) {
  Population two({{"population", "2"}, {"sigma", "0.25"}, {"lr", "0.5"}}, 1, DenseLayer(2, 3));
  const uint64_t seed = two.strategy().noise_seed("a", 0);
  const auto sign = [&](uint32_t layer, uint32_t part, uint32_t entry) {  // all entries are in the first word
    const PhiloxWords words = Philox4x32(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), {{0, part, 0, layer}});
    return (words.word[0] >> entry & 1U) != 0 ? -1.0F : 1.0F;
  };
  ASSERT_THAT(two.Commit({{"a", {3, 1}}}), IsOk());
  const float step = static_cast<float>(0.5 * 0.25 / 1048576 / std::sqrt(2.0));
  const std::vector<double> got = two.Weights();
  for (uint32_t i = 0; i < 2; ++i) {
    for (uint32_t j = 0; j < 3; ++j) EXPECT_EQ(got[i * 3 + j], static_cast<double>(step * (2097142.0F * sign(0, 0, i) * sign(0, 1, j)))) << i << ", " << j;
    EXPECT_EQ(got[6 + i], static_cast<double>(step * (2097142.0F * sign(1, 0, i) * sign(1, 1, 0)))) << i;
  }
  EXPECT_NEAR(std::abs(got[0]), 0.5 * 0.25 * 2 / std::sqrt(2.0), 1e-5);
}

TEST(EggrollStrategyTest, MembersThatChangeSidesTurnTheStepAround) {
  const std::vector<double> fitness = RandomValues(16, 1);
  std::vector<double> turned = fitness;
  for (size_t i = 0; i < 16; i += 2) std::swap(turned[i], turned[i + 1]);
  Population one({{"population", "16"}}, 1, DenseLayer(5, 7)), other({{"population", "16"}}, 1, DenseLayer(5, 7));
  ASSERT_THAT(one.Commit({{"a", fitness}}), IsOk());
  ASSERT_THAT(other.Commit({{"a", turned}}), IsOk());
  // Another order of the same numbers: their mean may round otherwise, and z with it.
  std::vector<double> sum = one.Weights();
  double largest = 0;
  for (size_t i = 0; i < sum.size(); ++i) {
    largest = std::max(largest, std::abs(sum[i]));
    EXPECT_NEAR(sum[i] + other.Weights()[i], 0, 1e-7) << i;
  }
  EXPECT_GT(largest, 1e-3);
}

TEST(EggrollStrategyTest, EqualFitnessChangesNothing) {
  Population one({{"population", "8"}}, 1, DenseLayer(5, 7));
  ASSERT_THAT(one.Commit({{"a", std::vector<double>(8, -2.5)}}), IsOk());
  EXPECT_EQ(one.Weights(), std::vector<double>(40, 0.0));
}

// The population's size divides, whoever answers: two of four clients, with their own centers, make the parts of the whole step that are theirs.
TEST(EggrollStrategyTest, MissingMembersCountAsZero) {
  FitnessOf all;
  for (const char* client : {"a", "b", "c", "d"}) all[client] = RandomValues(4, static_cast<uint64_t>(client[0]));
  const ParamMap params = {{"population", "16"}, {"center", "client"}};
  const auto weights = [&](const FitnessOf& fitness) {
    Population one(params, 4, DenseLayer(5, 7, DType::kF64));
    EXPECT_THAT(one.Commit(fitness), IsOk());
    return one.Weights();
  };
  const std::vector<double> whole = weights(all), first = weights({{"a", all["a"]}, {"c", all["c"]}}), second = weights({{"b", all["b"]}, {"d", all["d"]}});
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(first[i] + second[i], whole[i], 1e-15) << i;
}

TEST(EggrollStrategyTest, CenterOfTheClientTakesUnlikeScalesOutAndGlobalDoesNot) {
  const std::vector<double> fitness = RandomValues(8, 3);
  std::vector<double> scaled = fitness;
  for (double& f : scaled) f = 1000 * f - 77;
  for (const char* center : {"client", "global"}) {
    const ParamMap params = {{"population", "16"}, {"center", center}};
    Population plain(params, 2, DenseLayer(5, 7, DType::kF64)), unlike(params, 2, DenseLayer(5, 7, DType::kF64));
    ASSERT_THAT(plain.Commit({{"a", fitness}, {"b", fitness}}), IsOk());
    ASSERT_THAT(unlike.Commit({{"a", fitness}, {"b", scaled}}), IsOk());
    const Difference difference = Compare(unlike.Weights(), plain.Weights());
    if (std::string(center) == "client") {
      EXPECT_LE(difference.max_norm, 1e-4) << Words(difference);  // the floor 1e-5 of the variance
    } else {
      EXPECT_GE(difference.max_norm, 0.1) << Words(difference);
    }
  }
}

TEST(EggrollStrategyTest, OneLoudMemberHasNoMoreThanSixteen) {
  std::vector<double> fitness(1000, 0.0);
  fitness[6] = 1e6;  // z = 31.6
  Population one({{"population", "1000"}, {"sigma", "1"}, {"lr", "1"}}, 1, DenseLayer(1, 1, DType::kF64));
  const double noise = one.Noise("a", 3)[0];
  ASSERT_THAT(one.Commit({{"a", fitness}}), IsOk());
  EXPECT_NEAR(one.Weights()[0] * noise, 16 / std::sqrt(1000.0), 0.04);  // and the others' −.03 each, times ±1
}

// torch.optim.AdamW (PyTorch 2.11), in its own order of operations.
TEST(EggrollStrategyTest, AdamWIsPyTorchs) {
  Population one({{"population", "8"}, {"sigma", "0.2"}, {"lr", "0.01"}, {"server", "adamw"}, {"weight_decay", "0.1"}, {"beta2", "0.9"}}, 1, DenseLayer(3, 4, DType::kF64));
  std::vector<double> w(15), m(15), v(15);
  for (int t = 1; t <= 5; ++t) {
    const std::vector<double> fitness = RandomValues(8, static_cast<uint64_t>(t));
    double mean = 0, variance = 0;
    for (const double f : fitness) mean += f / 8;
    for (const double f : fitness) variance += (f - mean) * (f - mean) / 8;
    std::vector<double> gradient(15);
    for (uint32_t i = 0; i < 8; ++i) {
      const std::vector<float> noise = one.Noise("a", i / 2);
      const double z = std::rint((fitness[i] - mean) / std::sqrt(variance + 1e-5) * 0x1p20) * 0x1p-20;
      for (size_t k = 0; k < 15; ++k) gradient[k] -= std::sqrt(8.0) / 8 * z * (i % 2 == 0 ? 1 : -1) * 0.2 * noise[k];
    }
    for (size_t k = 0; k < 15; ++k) {
      w[k] *= 1 - 0.01 * 0.1;
      m[k] += (1 - 0.9) * (gradient[k] - m[k]);
      v[k] = 0.9 * v[k] + (1 - 0.9) * gradient[k] * gradient[k];
      w[k] -= 0.01 / (1 - std::pow(0.9, t)) * m[k] / (std::sqrt(v[k]) / std::sqrt(1 - std::pow(0.9, t)) + 1e-8);
    }
    ASSERT_THAT(one.Commit({{"a", fitness}}), IsOk());
    const Difference difference = Compare(one.Weights(), w);
    EXPECT_LE(difference.max_norm, 1e-12) << "version " << t << ": " << Words(difference);
  }
  EXPECT_THAT(one.state().strategy.vectors, ::testing::SizeIs(2));
}

// The note's regression: 16 × 24, 128 inputs, loss (W − T)·C·(W − T)ᵀ summed over outputs.
class Regression {
 public:
  Regression() : target_(RandomValues(16 * 24, 7, 0.775)), moments_(24 * 24) {
    const std::vector<double> x = RandomValues(128 * 24, 8);
    for (size_t n = 0; n < 128; ++n) {
      for (size_t i = 0; i < 24; ++i) {
        for (size_t j = 0; j < 24; ++j) moments_[i * 24 + j] += x[n * 24 + i] * x[n * 24 + j] / 128;
      }
    }
  }
  double Loss(std::span<const double> w) const {
    std::vector<double> off(w.begin(), w.end());
    for (size_t i = 0; i < off.size(); ++i) off[i] -= target_[i];
    return Square(off);
  }
  std::vector<double> Gradient(std::span<const double> w) const {
    std::vector<double> gradient(w.size());
    for (size_t o = 0; o < 16; ++o) {
      for (size_t i = 0; i < 24; ++i) {
        for (size_t j = 0; j < 24; ++j) gradient[o * 24 + i] += 2 * moments_[i * 24 + j] * (w[o * 24 + j] - target_[o * 24 + j]);
      }
    }
    return gradient;
  }
  // Of all members at these weights, dealt out to the clients; σ = .2. The loss is a square, so three terms are all of it.
  FitnessOf Measure(const Population& population, int members, std::span<const std::string> clients, int rank) const {
    FitnessOf fitness;
    const std::vector<double> w = population.Weights(), gradient = Gradient(w);
    const double loss = Loss(w);
    std::vector<double> step(w.size());
    for (const std::string& client : clients) {
      for (uint32_t p = 0; p < static_cast<uint32_t>(members) / clients.size() / 2; ++p) {
        const std::vector<float> noise = population.Noise(client, p);
        double slope = 0;
        for (size_t k = 0; k < w.size(); ++k) {
          step[k] = 0.2 / std::sqrt(rank) * noise[k];
          slope += gradient[k] * step[k];
        }
        const double curve = Square(step);
        fitness[client].push_back(-(loss + slope + curve));
        fitness[client].push_back(-(loss - slope + curve));
      }
    }
    return fitness;
  }

 private:
  double Square(std::span<const double> off) const {
    double sum = 0;
    for (size_t o = 0; o < 16; ++o) {
      for (size_t i = 0; i < 24; ++i) {
        double product = 0;
        for (size_t j = 0; j < 24; ++j) product += moments_[i * 24 + j] * off[o * 24 + j];
        sum += off[o * 24 + i] * product;
      }
    }
    return sum;
  }

  std::vector<double> target_, moments_;
};

TensorLayout RegressionLayout() { return LayoutOf({{.name = "w", .shape = {16, 24}, .dtype = DType::kF32, .kind = TensorKind::kTrainable}}); }

// P directions of d dimensions hold √(P/(P + d)) of a gradient; the note measured .26, .64, .92.
TEST(EggrollStrategyTest, TheStepPointsAlongTheGradientAsFarAsItsDirectionsReach) {
  const Regression regression;
  const std::vector<std::string> clients = {"a", "b"};
  for (const int members : {64, 512, 4096}) {
    Population population({{"population", fmt::format("{}", members)}, {"sigma", "0.2"}, {"lr", "0.03"}}, 2, RegressionLayout());
    const std::vector<double> gradient = regression.Gradient(population.Weights());
    ASSERT_THAT(population.Commit(regression.Measure(population, members, clients, 1)), IsOk());
    double dot = 0, step_square = 0, square = 0;
    const std::vector<double> step = population.Weights();
    for (size_t i = 0; i < step.size(); ++i) {
      dot -= step[i] * gradient[i];
      step_square += step[i] * step[i];
      square += gradient[i] * gradient[i];
    }
    const double pairs = members / 2.0;
    EXPECT_NEAR(dot / std::sqrt(step_square * square), std::sqrt(pairs / (pairs + 384)), 0.07) << members;
  }
}

// As the note has it (N = 512, σ = .2, η = .03): from a loss of some 230 to .044 at rank 1 and .007 at rank 4 in 300 versions.
TEST(EggrollStrategyTest, ThreeHundredVersionsComeToTheMinimumOfARegression) {
  const Regression regression;
  const std::vector<std::string> clients = {"a", "b"};
  for (const auto& [rank, most] : {std::pair(1, 0.2), std::pair(4, 0.2)}) {
    Population population({{"population", "512"}, {"sigma", "0.2"}, {"lr", "0.03"}, {"rank", fmt::format("{}", rank)}}, 2, RegressionLayout());
    const double before = regression.Loss(population.Weights());
    EXPECT_GT(before, 150);
    for (int version = 0; version < 300; ++version) ASSERT_THAT(population.Commit(regression.Measure(population, 512, clients, rank)), IsOk());
    const double after = regression.Loss(population.Weights());
    EXPECT_LT(after, most) << "rank " << rank;
    RecordProperty(fmt::format("loss_of_rank_{}", rank), fmt::format("{:.4g} to {:.4g}", before, after));
  }
}

TEST(EggrollStrategyTest, AVersionOfAnotherNumberOfMembersIsRefused) {
  Population one({{"population", "16"}}, 2, DenseLayer(2, 2));
  EXPECT_THAT(one.Commit({{"a", RandomValues(6, 1)}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 32 bytes, got 24")));
}

struct Wrong {
  const char* what;
  void (*change)(JobSpec&, TensorLayout&);
  const char* says;
};
std::ostream& operator<<(std::ostream& out, const Wrong& wrong) { return out << wrong.what; }

class EggrollRefusalTest : public ::testing::TestWithParam<Wrong> {};

TEST_P(EggrollRefusalTest, NamesTheKeyAndTheReason) {
  JobSpec job = EggrollJob({{"population", "16"}}, 2);
  TensorLayout model = DenseLayer(2, 3);
  ASSERT_THAT(CheckJob(job, **StrategyOf(job), model), IsOk());
  GetParam().change(job, model);
  EXPECT_THAT(CheckJob(job, **StrategyOf(job), model), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().says)));
}

INSTANTIATE_TEST_SUITE_P(
    All, EggrollRefusalTest,
    ::testing::Values(Wrong{"solver", [](JobSpec& job, TensorLayout&) { job.local.solver = "sgd"; }, "local.solver"},
                      Wrong{"strategy", [](JobSpec& job, TensorLayout&) { job.strategy = {.name = "fedavg", .params = {}}; }, "expected strategy eggroll"},
                      Wrong{"asynchronous", [](JobSpec& job, TensorLayout&) { job.strategy = {.name = "fedbuff", .params = {}}; }, "expected strategy eggroll"},
                      Wrong{"uneven", [](JobSpec& job, TensorLayout&) { job.cohort.size = 3; }, "expected a multiple of 6, got 16"},
                      Wrong{"poisson",
                            [](JobSpec& job, TensorLayout&) {
                              job.cohort.poisson = true;
                              job.cohort.rate = 0.5;
                              job.cohort.population = 4;
                            },
                            "cohort.sampling"},
                      Wrong{"codec", [](JobSpec& job, TensorLayout&) { job.codec = "int8"; }, "codec"},
                      Wrong{"adapter", [](JobSpec& job, TensorLayout&) { job.strategy.params["adapters"] = "fedit"; }, "adapters"},
                      Wrong{"rate", [](JobSpec& job, TensorLayout&) { job.local.lr = 0.5; }, "strategy.lr"},
                      Wrong{"momentum", [](JobSpec& job, TensorLayout&) { job.local.momentum = 0.9; }, "momentum"},
                      Wrong{"gradient_noise", [](JobSpec& job, TensorLayout&) { job.simulate.gradient_noise = 1; }, "simulate.gradient_noise"},
                      Wrong{"expert_weights", [](JobSpec& job, TensorLayout&) { job.strategy.params["expert_weights"] = "tokens"; }, "expert"},
                      Wrong{"buffers",
                            [](JobSpec&, TensorLayout& model) {
                              model = LayoutOf({{.name = "w", .shape = {4}, .dtype = DType::kF32, .kind = TensorKind::kTrainable},
                                                {.name = "bn.running_mean", .shape = {4}, .dtype = DType::kF32, .kind = TensorKind::kBuffer}});
                            },
                            "tensor 'bn.running_mean' is of kind buffer"},
                      Wrong{"experts",
                            [](JobSpec&, TensorLayout& model) {
                              model = LayoutOf({{.name = "l.experts.0.w", .shape = {2, 2}, .dtype = DType::kF32, .kind = TensorKind::kTrainable},
                                                {.name = "l.experts.1.w", .shape = {2, 2}, .dtype = DType::kF32, .kind = TensorKind::kTrainable}});
                            },
                            "model without experts"}),
    [](const auto& info) { return std::string(info.param.what); });

TEST(EggrollStrategyTest, WhatBelongsToAdamWIsRefusedWithSgd) {
  EXPECT_THAT(MakeStrategy({.name = "eggroll", .params = {{"beta1", "0.5"}}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("server: adamw")));
  EXPECT_THAT(MakeStrategy({.name = "eggroll", .params = {{"beta1", "0.5"}, {"server", "adamw"}}}), IsOk());
  EXPECT_THAT(MakeStrategy({.name = "eggroll", .params = {{"population", "7"}}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("even")));
  EXPECT_THAT(MakeStrategy({.name = "eggroll", .params = {{"rank", "65"}}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rank")));
  EXPECT_THAT(MakeStrategy({.name = "eggroll", .params = {{"noise", "gaussian"}}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rademacher")));
}

}  // namespace
}  // namespace tributary::aggregator
