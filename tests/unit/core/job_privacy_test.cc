#include "aggregator/core/privacy/job_privacy.h"

#include <gmock/gmock.h>

#include <cmath>

#include "aggregator/core/job_check.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

class JobPrivacyTest : public ::testing::Test {
 protected:
  JobPrivacyTest() {
    spec_.strategy = {.name = "fedavg", .params = {{"weighting", "uniform"}}};
    spec_.cohort.size = 40;
    spec_.stop.versions = 100;
    spec_.seed = 3;
    spec_.privacy = {.enabled = true, .clip = 2, .noise_multiplier = 1.5, .delta = 1e-5, .insecure_seed = true};
    layout_ = *TensorLayout::Create({{.name = "w", .shape = {10}}});
  }
  absl::StatusOr<std::unique_ptr<JobPrivacy>> Make() {
    auto strategy = MakeStrategy(spec_.strategy, spec_.local);
    if (!strategy.ok()) return strategy.status();
    strategy_ = *std::move(strategy);
    return JobPrivacy::Create(spec_, layout_, *strategy_);
  }
  static std::vector<RoundContributor> Bits(int within, int beyond) {
    std::vector<RoundContributor> contributors;
    contributors.resize(static_cast<size_t>(within + beyond));
    for (int i = 0; i < within + beyond; ++i) contributors[static_cast<size_t>(i)].scalars[kWithinClip] = i < within ? 1.0 : 0.0;
    return contributors;
  }

  JobSpec spec_;
  TensorLayout layout_;
  std::unique_ptr<Strategy> strategy_;
};

TEST_F(JobPrivacyTest, ClipFollowsTheQuantileWithoutNoiseAsTheFormulaSays) {
  spec_.privacy.noise_multiplier = 0;
  spec_.privacy.adaptive = {.enabled = true, .quantile = 0.6, .rate = 0.3};
  const auto privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  EXPECT_EQ((*privacy)->count_stddev(), 0);
  // b̃ = (Σ(b − ½))/n + ½ with n the fixed cohort: 12 of 30 within, 10 of 40 away.
  const double share = (12 * 0.5 - 18 * 0.5) / 40 + 0.5;
  EXPECT_NEAR((*privacy)->NextClip(2, Bits(12, 18), 10, nullptr), 2 * std::exp(-0.3 * (share - 0.6)), 1e-15);
  EXPECT_NEAR((*privacy)->NextClip(2, Bits(40, 0), 10, nullptr), 2 * std::exp(-0.3 * 0.4), 1e-15);
  EXPECT_NEAR((*privacy)->NextClip(2, Bits(0, 40), 10, nullptr), 2 * std::exp(0.3 * 0.6), 1e-15);
}

TEST_F(JobPrivacyTest, CountAndSumTogetherCostTheNoiseMultiplier) {
  spec_.privacy.adaptive = {.enabled = true};
  const auto privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  const double count = (*privacy)->count_stddev();
  EXPECT_DOUBLE_EQ(count, 2);  // 40 / 20
  const double z_sum = (*privacy)->SumStddev(1);
  EXPECT_NEAR(1 / (z_sum * z_sum) + 1 / (4 * count * count), 1 / (1.5 * 1.5), 1e-15);
  EXPECT_DOUBLE_EQ((*privacy)->SumStddev(0.25), 0.25 * z_sum);
  EXPECT_EQ((*privacy)->event().noise_multiplier, 0.75);  // replace: z relative to 2C
}

// The count's normal is not one of the sum's: whoever saw both would see less noise.
TEST_F(JobPrivacyTest, TheCountHasItsOwnNormal) {
  spec_.privacy.adaptive = {.enabled = true};
  const auto privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  const auto noise = (*privacy)->NoiseOf(7, std::nullopt);
  std::vector<double> of_sum(16);
  AddNormals(*noise, 0, 1, std::span(of_sum).first(10));
  const double clip = (*privacy)->NextClip(1, Bits(20, 20), 10, noise.get());
  const double drawn = -std::log(clip) / 0.2 * 40 / (*privacy)->count_stddev();
  for (const double normal : of_sum) EXPECT_GT(std::abs(normal - drawn), 1e-9);
  AddNormals(*noise, 12, 1, std::span(of_sum).subspan(12, 1));
  EXPECT_NEAR(drawn, of_sum[12], 1e-9);
}

TEST_F(JobPrivacyTest, UpdatesSayWhetherTheyWereWithinTheClip) {
  spec_.privacy.adaptive = {.enabled = true};
  ASSERT_THAT(Make(), IsOk());
  const std::vector<ScalarInfo> wanted = UpdateScalars(*strategy_, spec_);
  ASSERT_EQ(wanted.size(), 1U);
  EXPECT_THAT(CheckScalars(*strategy_, wanted, {{kWithinClip, 1}}), IsOk());
  EXPECT_THAT(CheckScalars(*strategy_, wanted, {{kWithinClip, 0.5}}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 0 or 1, got 0.5")));
  EXPECT_THAT(CheckScalars(*strategy_, wanted, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'within_clip' is missing")));
  spec_.privacy.adaptive.enabled = false;
  EXPECT_TRUE(UpdateScalars(*strategy_, spec_).empty());
}

TEST_F(JobPrivacyTest, BoundedWeightsScaleTheNoise) {
  spec_.strategy = {.name = "fedau", .params = {{"cutoff", "8"}}};
  auto privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  EXPECT_DOUBLE_EQ((*privacy)->SumStddev(2), 1.5 * 8 * 2);
  spec_.strategy = {.name = "known_p", .params = {{"p", "0.5, 0.125"}}};
  privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  EXPECT_DOUBLE_EQ((*privacy)->SumStddev(2), 1.5 * 8 * 2);
}

TEST_F(JobPrivacyTest, WithoutNoiseNothingIsPromised) {
  spec_.privacy.noise_multiplier = 0;
  const auto privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  EXPECT_EQ((*privacy)->SpendAfter(0).epsilon(), 0);
  EXPECT_TRUE(std::isinf((*privacy)->SpendAfter(1).epsilon()));
  EXPECT_EQ((*privacy)->versions(), 100);
  EXPECT_EQ((*privacy)->SumStddev(1), 0);
}

TEST_F(JobPrivacyTest, TheBudgetEndsTheJobBeforeItIsExceeded) {
  auto privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  spec_.privacy.epsilon_budget = ((*privacy)->SpendAfter(5).epsilon() + (*privacy)->SpendAfter(6).epsilon()) / 2;
  privacy = Make();
  ASSERT_THAT(privacy, IsOk());
  EXPECT_EQ((*privacy)->versions(), 5);
  EXPECT_FALSE((*privacy)->EndedByBudget(4));
  EXPECT_THAT((*privacy)->EndedByBudget(5).value_or(""), HasSubstr("budget is spent"));
}

struct Refusal {
  StrategySpec strategy;
  std::string words;
};

TEST_F(JobPrivacyTest, WhatIsNotOneBoundedSumIsRefusedWithTheReason) {
  for (const Refusal& refusal : {Refusal{{"fedavg", {}}, "weights that the client sets"}, Refusal{{"fedau", {{"cutoff", "inf"}}}, "cutoff: expected a finite number"},
                                 Refusal{{"krum", {{"byzantine", "2"}}}, "every update by itself"}, Refusal{{"fednova", {}}, "'step_norm'"},
                                 Refusal{{"qfedavg", {}}, "'initial_loss'"}, Refusal{{"scaffold", {}}, "control variate"},
                                 Refusal{{"fedasync", {}}, "one client at a time"}, Refusal{{"fedbuff", {}}, "once_per_buffer: true"},
                                 Refusal{{"fedbuff", {{"once_per_buffer", "true"}, {"weight", "online"}}}, "weight: expected none"}}) {
    spec_.strategy = refusal.strategy;
    EXPECT_THAT(Make().status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(refusal.words))) << refusal.strategy.name;
  }
}

TEST_F(JobPrivacyTest, WhatIsNotAccountedIsRefused) {
  spec_.record = true;
  EXPECT_THAT(Make().status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("record: true")));
  spec_.record = false;
  spec_.privacy.adaptive = {.enabled = true, .count_stddev = 0.75};
  EXPECT_THAT(Make().status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("greater than 0.75")));
  spec_.privacy.adaptive = {};
  spec_.privacy.placement = NoisePlacement::kDistributed;
  spec_.strategy = {.name = "fedau", .params = {}};
  EXPECT_THAT(Make().status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected central or local")));
  spec_.strategy = {.name = "fedavg", .params = {{"weighting", "uniform"}}};
  spec_.cohort = {.size = 3, .poisson = true, .rate = 0.1, .population = 30};
  spec_.privacy.replace = false;
  EXPECT_THAT(Make().status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rate × population")));
}

TEST_F(JobPrivacyTest, AdmmIsRefusedWithPrivacyAndWithMomentum) {
  for (const std::string name : {"fedadmm", "rerce_admm"}) {
    spec_.strategy = {.name = name, .params = {}};
    auto strategy = MakeStrategy(spec_.strategy, spec_.local);
    ASSERT_THAT(strategy, IsOk());
    EXPECT_THAT(CheckJob(spec_, **strategy, layout_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an update is a model"))) << name;
    JobSpec plain = spec_;
    plain.privacy.enabled = false;
    EXPECT_THAT(CheckJob(plain, **strategy, layout_), IsOk()) << name;
    plain.local.momentum = 0.9;
    EXPECT_THAT(CheckJob(plain, **strategy, layout_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("local.momentum"))) << name;
  }
}

TEST_F(JobPrivacyTest, PoissonNeedsAPopulation) {
  spec_.privacy.enabled = false;
  spec_.cohort.poisson = true;
  spec_.cohort.rate = 0.5;
  auto strategy = MakeStrategy(spec_.strategy, spec_.local);
  ASSERT_THAT(strategy, IsOk());
  EXPECT_THAT(CheckJob(spec_, **strategy, layout_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cohort.population")));
}

}  // namespace
}  // namespace tributary::aggregator
