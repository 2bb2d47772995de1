// Routing arithmetic and balance losses against published reference code, finite differences and closed forms.
#include "client/core/moe/moe_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "client/core/moe/capacity_schedule.h"
#include "client/core/moe/moe_metrics.h"
#include "client/core/moe/router.h"
#include "client/core/random.h"
#include "common/exact_exp.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

const nlohmann::json& Golden() {
  static const nlohmann::json golden = nlohmann::json::parse(std::ifstream(TRIB_GOLDEN_DIR "/moe_reference.json"));
  return golden;
}

std::vector<float> Flat(const nlohmann::json& rows) {
  std::vector<float> values;
  for (const auto& row : rows) {
    for (const auto& value : row) values.push_back(value.get<float>());
  }
  return values;
}

std::vector<float> Normals(size_t count, uint64_t seed) {
  CounterRandom random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.Normal());
  return values;
}

// The gates as the references give them: [N, E], 0 where an expert does not have the token.
std::vector<float> Dense(const Selection& selection, const std::vector<float>& gates) {
  std::vector<float> dense(selection.tokens * selection.experts(), 0.0F);
  for (size_t j = 0; j < selection.experts(); ++j) {
    for (int64_t pair = selection.offsets[j]; pair < selection.offsets[j + 1]; ++pair) {
      dense[static_cast<size_t>(selection.token[static_cast<size_t>(pair)]) * selection.experts() + j] = gates[static_cast<size_t>(pair)];
    }
  }
  return dense;
}

TEST(ExactExpTest, AgreesWithTheLibraryToTheLastBits) {
  for (double x = -700; x < 700; x += 0.37) EXPECT_NEAR(ExactExp(x) / std::exp(x), 1, 1e-14) << x;
  EXPECT_EQ(ExactExp(0), 1);
  EXPECT_EQ(ExactExp(-1e4), 0);
  EXPECT_TRUE(std::isinf(ExactExp(1e4)));
  EXPECT_TRUE(std::isnan(ExactExp(std::nan(""))));
}

TEST(BalanceLossTest, IsTransformersMixtralsOverK) {
  const auto& golden = Golden()["mixtral_lbl"];
  const size_t experts = golden["num_experts"], top_k = golden["top_k"];
  for (const bool masked : {false, true}) {
    std::vector<float> logits;  // transformers pools the tokens of all layers
    for (const auto& layer : golden["gate_logits"]) {
      const std::vector<float> rows = Flat(layer), mask = Flat(golden["mask"]);
      for (size_t n = 0; n < mask.size(); ++n) {
        if (!masked || mask[n] != 0) logits.insert(logits.end(), rows.begin() + static_cast<std::ptrdiff_t>(n * experts), rows.begin() + static_cast<std::ptrdiff_t>((n + 1) * experts));
      }
    }
    const std::vector<float> scores = Scores(logits, experts, Score::kSoftmax);
    const Selection selection = SelectTopK(scores, {}, experts, top_k);
    const double loss = BalanceLoss(scores, BalanceWeights(1.0, LoadShare(selection.Counts())));
    EXPECT_NEAR(loss * static_cast<double>(top_k), golden[masked ? "loss_masked" : "loss"].get<double>(), 1e-5);
  }
}

TEST(BalanceLossTest, IsMegatronsOverOneRankAndOverAll) {
  const auto& golden = Golden()["megatron"];
  const size_t experts = golden["E"], top_k = golden["k"];
  std::vector<int64_t> all(experts, 0);
  for (const auto& rank : golden["ranks"]) {
    const Selection selection = SelectTopK(Scores(Flat(rank["logits"]), experts, Score::kSoftmax), {}, experts, top_k);
    const std::vector<int64_t> counts = selection.Counts();
    for (size_t j = 0; j < experts; ++j) {
      EXPECT_EQ(static_cast<double>(counts[j]), rank["counts"][j].get<double>());
      all[j] += counts[j];
    }
  }
  for (const auto& rank : golden["ranks"]) {
    const std::vector<float> scores = Scores(Flat(rank["logits"]), experts, Score::kSoftmax);
    const std::vector<int64_t> counts = SelectTopK(scores, {}, experts, top_k).Counts();
    EXPECT_NEAR(BalanceLoss(scores, BalanceWeights(1.0, LoadShare(counts))), rank["switch_lbl"].get<double>(), 1e-5);
    EXPECT_NEAR(BalanceLoss(scores, BalanceWeights(1.0, LoadShare(all))), rank["global_lbl"].get<double>(), 1e-5);
  }
}

TEST(SelectTopKTest, IsMegatronsForSigmoidScoresWithABias) {
  const auto& golden = Golden()["megatron"]["sigmoid_bias"];
  const std::vector<float> logits = Flat(golden["logits"]), bias = golden["bias"], probs = Flat(golden["probs"]);
  const size_t experts = bias.size();
  size_t chosen = 0;
  for (size_t j = 0; j < experts; ++j) chosen += probs[j] != 0 ? 1 : 0;
  const std::vector<float> scores = Scores(logits, experts, Score::kSigmoid);
  const Selection selection = SelectTopK(scores, bias, experts, chosen);
  const std::vector<int64_t> counts = selection.Counts();
  for (size_t j = 0; j < experts; ++j) EXPECT_EQ(static_cast<double>(counts[j]), golden["counts"][j].get<double>());
  const std::vector<float> dense = Dense(selection, Gates(selection, logits, scores, GateRule::kRenormalised, GateShape::kLinear));
  for (size_t i = 0; i < probs.size(); ++i) EXPECT_NEAR(dense[i], probs[i], 1e-6) << i;

  TRIB_ASSERT_OK_AND_ASSIGN(const auto alf, MakeRouter("alf", {{"step", "0.001"}, {"scale_by_std", "false"}, {"local_steps", "true"}}, {.experts = experts, .top_k = chosen}));
  ASSERT_THAT(alf->SetState(bias), testing::IsOk());
  alf->EndStep(alf->Select(logits, scores, {}).Counts());
  for (size_t j = 0; j < experts; ++j) EXPECT_NEAR(alf->state()[j], golden["updated_bias_u1e3"][j].get<double>(), 1e-6);
}

TEST(ExpertChoiceTest, IsTheReferencesInBothOrdersAndWithUnequalCapacities) {
  const auto& golden = Golden()["expert_choice"];
  const size_t length = golden["seq"], sequences = golden["bsz"], experts = golden["E"];
  const auto by_sequence = [&](const char* key) {  // the reference has a position's sequences side by side
    const std::vector<float> rows = Flat(golden[key]);
    std::vector<float> ordered;
    for (size_t b = 0; b < sequences; ++b) {
      for (size_t s = 0; s < length; ++s) {
        const auto row = rows.begin() + static_cast<std::ptrdiff_t>((s * sequences + b) * experts);
        ordered.insert(ordered.end(), row, row + static_cast<std::ptrdiff_t>(experts));
      }
    }
    return ordered;
  };
  const std::vector<float> logits = by_sequence("logits"), scores = Scores(logits, experts, Score::kSoftmax);
  const std::vector<double> ratio = {0.0, 1.0};  // linear from 1 to 3: the capacities of `dyn`
  const struct {
    const char* probs;
    const char* map;
    ParamMap params;
  } rows[] = {{"probs", "map", {{"capacity", "2"}}},
              {"pre_probs", "pre_map", {{"capacity", "2"}, {"order", "pre"}}},
              {"dyn_probs", "dyn_map", {{"schedule", "linear"}, {"capacity_min", "1"}, {"capacity_max", "3"}}}};
  for (const auto& row : rows) {
    TRIB_ASSERT_OK_AND_ASSIGN(const auto router, MakeRouter("expert_choice", row.params, {.experts = experts, .top_k = 2}));
    const Selection selection = router->Select(logits, scores, {.sequence = length, .mask_ratio = ratio});
    const std::vector<float> dense = Dense(selection, Gates(selection, logits, scores, router->gate_rule(), GateShape::kLinear));
    const std::vector<float> expected = by_sequence(row.probs), map = by_sequence(row.map);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(dense[i], expected[i], 1e-6) << row.probs << " " << i;
      EXPECT_EQ(dense[i] != 0, map[i] != 0) << row.map << " " << i;
    }
    const std::vector<int64_t> counts = selection.Counts();
    for (const int64_t count : counts) EXPECT_EQ(count, counts[0]) << "loads are exactly even";
  }
}

TEST(BalanceLossTest, ItsGradientIsThatOfFiniteDifferences) {
  const size_t experts = 6;
  std::vector<float> logits = Normals(5 * experts, 8);
  const std::vector<double> weights = {0.3, 1.7, 0.2, 2.0, 0.1, 1.1};
  const std::vector<double> gradient = BalanceLossGradient(Scores(logits, experts, Score::kSoftmax), weights);
  for (size_t i = 0; i < logits.size(); ++i) {
    const float kept = logits[i];
    logits[i] = kept + 0.01F;
    const double above = BalanceLoss(Scores(logits, experts, Score::kSoftmax), weights);
    logits[i] = kept - 0.01F;
    const double below = BalanceLoss(Scores(logits, experts, Score::kSoftmax), weights);
    logits[i] = kept;
    EXPECT_NEAR(gradient[i], (above - below) / 0.02, 2e-5) << i;  // single precision scores: 1e-7 / 0.02
  }
}

// A router that has learnt its client's domain sends all tokens to two experts. The local loss pulls it apart; the global one, where all
// clients together load the experts evenly, leaves it alone (moe_lora note §3.1).
TEST(BalanceLossTest, TheGlobalOneLeavesASpecialisedRouterAloneAndTheLocalOneDoesNot) {
  const size_t experts = 8, tokens = 256;
  std::vector<float> logits = Normals(tokens * experts, 5);
  for (size_t n = 0; n < tokens; ++n) {
    logits[n * experts] += 3;
    logits[n * experts + 1] += 3;
  }
  const std::vector<float> scores = Scores(logits, experts, Score::kSoftmax);
  const auto norm = [&](const std::vector<double>& weights) {
    double sum = 0;
    for (const double g : BalanceLossGradient(scores, weights)) sum += g * g;
    return std::sqrt(sum);
  };
  const RouterShape shape{.experts = experts, .top_k = 2};
  TRIB_ASSERT_OK_AND_ASSIGN(const auto local, MakeRouter("lbl", {{"weight", "1"}}, shape));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto global, MakeRouter("global_lbl", {{"weight", "1"}, {"local_fraction", "0"}}, shape));
  const std::vector<int64_t> counts = local->Select(logits, scores, {}).Counts();
  EXPECT_GT(norm(local->LossWeights(counts)), 1e-3);
  EXPECT_GT(norm(global->LossWeights(counts)), 1e-3) << "before a global load has come";
  // The server's load is of all clients; this one's batch is a vanishing part of it.
  global->SetGlobalLoad({.share = std::vector<double>(experts, 1.0 / experts), .tokens = 1e12});
  EXPECT_LT(norm(global->LossWeights(counts)), 1e-7);
  EXPECT_NEAR(BalanceLoss(scores, global->LossWeights(counts)), 1.0, 1e-6) << "ΣP = 1";
}

TEST(ZLossTest, IsTheMeanSquareOfLogSumExp) {
  const std::vector<float> logits = {0, 0, 0, 0, 1, 2, 3, 4};
  const double second = std::log(std::exp(1) + std::exp(2) + std::exp(3) + std::exp(4));
  EXPECT_NEAR(ZLoss(logits, 4), (std::log(4) * std::log(4) + second * second) / 2, 1e-12);
}

TEST(SelectTopKTest, TiesGoToTheLowestIndexAndWhatIsNotANumberComesLast) {
  const std::vector<float> even(8, 0.25F);
  const Selection tied = SelectTopK(even, {}, 4, 2);
  EXPECT_EQ(tied.Counts(), (std::vector<int64_t>{2, 2, 0, 0}));
  const float nan = std::nanf("");
  EXPECT_EQ(SelectTopK(std::vector<float>{nan, 0.1F, nan, 0.2F}, {}, 4, 2).Counts(), (std::vector<int64_t>{0, 1, 0, 1}));
  EXPECT_EQ(SelectTopK(std::vector<float>{nan, nan, nan, nan}, {}, 4, 2).Counts(), (std::vector<int64_t>{1, 1, 0, 0}));
}

TEST(GatesTest, DoNotDependOnTheBiasThatSelected) {
  const size_t experts = 8;
  const std::vector<float> logits = Normals(100 * experts, 2), scores = Scores(logits, experts, Score::kSigmoid);
  const std::vector<float> bias = Normals(experts, 3);
  const Selection selection = SelectTopK(scores, bias, experts, 3);
  const std::vector<float> gates = Gates(selection, logits, scores, GateRule::kRenormalised, GateShape::kLinear);
  std::vector<double> sum(100, 0.0);
  for (size_t pair = 0; pair < gates.size(); ++pair) sum[static_cast<size_t>(selection.token[pair])] += gates[pair];
  for (const double s : sum) EXPECT_NEAR(s, 1, 1e-6);
  const std::vector<float> dense = Dense(selection, gates);
  for (size_t n = 0; n < 100; ++n) {
    for (size_t i = 0; i < experts; ++i) {
      for (size_t j = 0; j < experts; ++j) {
        if (dense[n * experts + i] == 0 || dense[n * experts + j] == 0) continue;
        EXPECT_NEAR(dense[n * experts + i] * scores[n * experts + j], dense[n * experts + j] * scores[n * experts + i], 1e-6);
      }
    }
  }
}

// Of K independent experts with outputs of variance 1, for K from 1 to 32: moe_lora note §3.8.
TEST(GatesTest, SqrtKeepsTheOutputsSizeWhateverKIs) {
  const size_t experts = 32, tokens = 400, width = 32;
  const std::vector<float> logits = Normals(tokens * experts, 21), scores = Scores(logits, experts, Score::kSoftmax);
  const std::vector<float> outputs = Normals(experts * tokens * width, 22);
  const auto size = [&](size_t top_k, GateShape shape) {
    const Selection selection = SelectTopK(scores, {}, experts, top_k);
    const std::vector<float> dense = Dense(selection, Gates(selection, logits, scores, GateRule::kRenormalised, shape));
    double squares = 0;
    for (size_t n = 0; n < tokens; ++n) {
      for (size_t d = 0; d < width; ++d) {
        double y = 0;
        for (size_t j = 0; j < experts; ++j) y += static_cast<double>(dense[n * experts + j]) * outputs[(n * experts + j) * width + d];
        squares += y * y;
      }
    }
    return std::sqrt(squares / static_cast<double>(tokens * width));
  };
  for (const size_t top_k : {1, 2, 4, 8, 16, 32}) EXPECT_NEAR(size(top_k, GateShape::kSqrt), 1, 0.02) << top_k;
  EXPECT_NEAR(size(1, GateShape::kLinear), 1, 0.02);
  EXPECT_LT(size(32, GateShape::kLinear), 0.35) << "which linear gates do not";
}

TEST(GatesTest, SqrtIsFiniteWhereAGateIsZero) {
  const std::vector<float> logits = {200, -200}, scores = Scores(logits, 2, Score::kSoftmax);
  const Selection both = SelectTopK(scores, {}, 2, 2);
  for (const float gate : Gates(both, logits, scores, GateRule::kRenormalised, GateShape::kSqrt)) EXPECT_TRUE(std::isfinite(gate) && gate > 0);
}

TEST(CapacityScheduleTest, GivesTheNotesValues) {
  const std::pair<const char*, int64_t> rows[] = {{"none", 8},    {"linear", 14},   {"linear_reverse", 26},  {"cosine", 12},
                                                  {"cosine_reverse", 28}, {"gaussian", 20}, {"gaussian_reverse", 20}};
  for (const auto& [kind, expected] : rows) {
    TRIB_ASSERT_OK_AND_ASSIGN(const CapacitySchedule schedule, CapacitySchedule::Create(kind, 8, 32));
    EXPECT_EQ(schedule.At(0.25), expected) << kind;
    if (std::string(kind) == "none" || std::string(kind).find("gaussian") == 0) continue;
    double sum = 0;
    for (int i = 0; i <= 1000; ++i) sum += static_cast<double>(schedule.At(i / 1000.0));
    EXPECT_NEAR(sum / 1001, 20, 0.1) << kind << " does the same work as the others";
  }
  EXPECT_THAT(CapacitySchedule::Create("cosin", 8, 32), testing::StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("'cosine'")));
  EXPECT_THAT(CapacitySchedule::Create("linear", 9, 8), testing::StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(MoeMetricsTest, HaveTheirValuesInCasesThatOneCanCompute) {
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<int64_t>{4, 4, 4, 4}), 0);
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<int64_t>{16, 0, 0, 0}), 3);
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<int64_t>{0, 0}), 0);
  EXPECT_DOUBLE_EQ(EffectiveExperts(std::vector<int64_t>{5, 5, 0, 0}), 2);
  using Counts = std::vector<std::vector<int64_t>>;
  EXPECT_DOUBLE_EQ(Specialisation(Counts{{10, 0}, {0, 30}}), (0.25 * std::log(4) + 0.75 * std::log(4.0 / 3)) / std::log(2));
  EXPECT_DOUBLE_EQ(Specialisation(Counts{{20, 0}, {0, 20}}), 1);
  EXPECT_NEAR(Specialisation(Counts{{10, 20}, {5, 10}}), 0, 1e-15);
  EXPECT_EQ(Specialisation(Counts{{10, 20}}), 0);
  EXPECT_EQ(UnservedTokens({.tokens = 4, .token = {0, 3, 3}, .offsets = {0, 2, 3}}), 2u);
  LoadRecord record;
  record.Add(std::vector<int64_t>{3, 1});
  record.Add(std::vector<int64_t>{1, 1});
  EXPECT_EQ(record.counts(), (std::vector<int64_t>{4, 2}));
  EXPECT_DOUBLE_EQ(record.average(), 0.25);
  EXPECT_DOUBLE_EQ(record.largest(), 0.5);
}

}  // namespace
}  // namespace tributary::client
