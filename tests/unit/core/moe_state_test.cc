// Mixtures of experts at the root: weights of experts against NumPy (tests/golden/expert_weights.py), biases against Megatron, the load of all,
// and what is refused.
#include "aggregator/core/moe_state.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/job_check.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

nlohmann::json Golden(const std::string& name) { return nlohmann::json::parse(std::ifstream(std::string(TRIB_GOLDEN) + "/" + name)); }

MoeStats StatsOf(const std::vector<std::vector<int64_t>>& layers, int64_t top_k) {
  MoeStats stats;
  for (const std::vector<int64_t>& counts : layers) {
    const int64_t tokens = std::accumulate(counts.begin(), counts.end(), int64_t{0}) / top_k;
    stats.push_back({.counts = counts, .prob_sum = std::vector<double>(counts.size(), static_cast<double>(tokens) / static_cast<double>(counts.size())),
                     .square_sum = static_cast<double>(tokens) / 2, .tokens = tokens});
  }
  return stats;
}

// A job, its strategy and its experts.
class Mixture {
 public:
  Mixture(TensorLayout layout, ParamMap model_params, ParamMap strategy_params, const std::string& strategy = "fedavg") : layout_(std::move(layout)) {
    spec_.model.zoo = "moe_mlp";
    spec_.model.params = std::move(model_params);
    spec_.strategy = {.name = strategy, .params = std::move(strategy_params)};
    auto made = MakeStrategy(spec_.strategy, spec_.local);
    EXPECT_THAT(made, IsOk());
    strategy_ = *std::move(made);
    auto state = MoeState::Create(spec_, *strategy_, layout_);
    EXPECT_THAT(state, IsOk());
    state_ = *std::move(state);
  }

  static RoundContributor Contributor(size_t k, double weight, MoeStats moe) {
    return {.key = {.client = fmt::format("c{}", k), .task = k + 1, .update = Id(k)}, .weight = weight, .examples = 1, .claimed = weight, .moe = std::move(moe)};
  }

  // The model after a commit of these updates, folded in `order` and in as many parts as `parts` says.
  std::vector<std::byte> Commit(std::span<const std::byte> model, const std::vector<RoundContributor>& by, const std::vector<std::vector<std::byte>>& updates,
                                const std::vector<size_t>& order, Arithmetic arithmetic = Arithmetic::kFloat64, size_t parts = 1) {
    std::vector<Partial> partials;
    const TensorLayout of_update = *strategy_->UpdateLayout(layout_);
    for (size_t p = 0; p < parts; ++p) partials.emplace_back(of_update, strategy_->MakeReducer(layout_.float_dtype(), arithmetic), arithmetic, 16);
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t k = order[i];
      const PartialInput input{.id = by[k].key.update, .update = updates[k], .weight = by[k].weight, .runs = state_->RunsOf(by[k].moe)};
      EXPECT_THAT(partials[i % parts].AccumulateAll({&input, 1}), IsOk());
    }
    for (size_t p = 1; p < parts; ++p) EXPECT_THAT(partials[0].Merge(std::move(partials[p])), IsOk());
    const StatePiece piece{.first = 0, .count = of_update.float_count(), .state = partials[0].state().data()};
    const WeightRuns scales = state_->ScalesOf(by, partials[0].sum_weight());
    std::vector<std::byte> next(layout_.total_bytes());
    StrategyState kept;
    StepInput input;
    input.layout = &layout_;
    input.reducer = &partials[0].reducer();
    input.pieces = {&piece, 1};
    input.previous = model;
    input.facts = {.version = 1, .sum_weight = partials[0].sum_weight(), .registered = 3, .contributors = by};
    input.scales = scales;
    EXPECT_THAT(ApplyServerStep(strategy_->server_step(), input, kept, next), IsOk());
    return next;
  }

  const TensorLayout layout_;
  JobSpec spec_;
  std::unique_ptr<Strategy> strategy_;
  std::unique_ptr<const MoeState> state_;
};

TensorLayout LayoutOfNames(const std::vector<std::string>& names, int64_t width, DType dtype = DType::kF64) {
  std::vector<TensorSpec> specs;
  for (const std::string& name : names) specs.push_back({.name = name, .shape = {width}, .dtype = dtype, .kind = TensorKind::kTrainable});
  return LayoutOf(std::move(specs));
}

// Two layers of three experts, and three clients.
class ExpertWeightsTest : public ::testing::Test {
 protected:
  std::vector<std::byte> Flat(const nlohmann::json& tensors) const {
    std::vector<double> all;
    for (const auto& name : golden_["names"]) {
      for (const double v : tensors[name.get<std::string>()]) all.push_back(v);
    }
    return AsBytes(all);
  }
  std::vector<RoundContributor> Contributors() const {
    std::vector<RoundContributor> by;
    for (size_t k = 0; k < 3; ++k) by.push_back(Mixture::Contributor(k, golden_["weights"][k], StatsOf(golden_["counts"][k], golden_["top_k"])));
    return by;
  }
  std::vector<std::vector<std::byte>> Updates() const {
    std::vector<std::vector<std::byte>> updates;
    for (const auto& delta : golden_["deltas"]) updates.push_back(Flat(delta));
    return updates;
  }

  const nlohmann::json golden_ = Golden("expert_weights.json");
  const TensorLayout layout_ = LayoutOfNames(golden_["names"], 4);
};

TEST_F(ExpertWeightsTest, AreNumPysAndAMeanWithoutThem) {
  for (const std::string mode : {"tokens", "mean"}) {
    Mixture mixture(layout_, {{"top_k", "1"}}, {{"expert_weights", mode}});
    const std::vector<double> got = FromBytes<double>(mixture.Commit(Flat(golden_["model"]), Contributors(), Updates(), {0, 1, 2}));
    const Difference d = Compare(got, FromBytes<double>(Flat(golden_[mode])));
    EXPECT_LT(d.max_abs, 1e-12) << mode << ": " << Words(d);
  }
}

TEST_F(ExpertWeightsTest, AnExpertThatNobodysTokenWentToStaysToTheBitAndAClientWithoutTokensMovesNothing) {
  Mixture mixture(layout_, {{"top_k", "1"}}, {{"expert_weights", "tokens"}});
  const std::vector<std::byte> model = Flat(golden_["model"]);
  const std::vector<RoundContributor> by = Contributors();
  std::vector<std::vector<std::byte>> updates = Updates();
  const std::vector<double> got = FromBytes<double>(mixture.Commit(model, by, updates, {0, 1, 2})), before = FromBytes<double>(model);
  const PlacedTensor* untouched = layout_.Find("layers.1.moe.experts.2.w1.weight");
  for (size_t i = 0; i < untouched->elements; ++i) EXPECT_EQ(got[untouched->offset_bytes / 8 + i], before[untouched->offset_bytes / 8 + i]);
  // Client 1 had no token for expert 0 of layer 0: whatever it sends there changes nothing.
  const PlacedTensor* foreign = layout_.Find("layers.0.moe.experts.0.w1.weight");
  std::vector<double> lying = FromBytes<double>(updates[1]);
  for (size_t i = 0; i < foreign->elements; ++i) lying[foreign->offset_bytes / 8 + i] = 1e6;
  updates[1] = AsBytes(lying);
  EXPECT_EQ(FromBytes<double>(mixture.Commit(model, by, updates, {0, 1, 2})), got);
}

TEST_F(ExpertWeightsTest, EvenLoadsGiveFedAvgBitForBit) {
  Mixture weighted(layout_, {{"top_k", "1"}}, {{"expert_weights", "tokens"}}), plain(layout_, {{"top_k", "1"}}, {});
  std::vector<RoundContributor> by = Contributors();
  for (size_t k = 0; k < 3; ++k) by[k].moe = StatsOf(std::vector<std::vector<int64_t>>(2, std::vector<int64_t>(3, static_cast<int64_t>(7 + k))), 1);
  EXPECT_EQ(weighted.Commit(Flat(golden_["model"]), by, Updates(), {0, 1, 2}), plain.Commit(Flat(golden_["model"]), by, Updates(), {0, 1, 2}));
}

TEST_F(ExpertWeightsTest, MergedIsTheWholeAndOrderChangesNoBitInReproducibleMode) {
  Mixture mixture(layout_, {{"top_k", "1"}}, {{"expert_weights", "tokens"}});
  const std::vector<RoundContributor> by = Contributors();
  const std::vector<std::byte> model = Flat(golden_["model"]);
  const auto commit = [&](const std::vector<size_t>& order, size_t parts) { return mixture.Commit(model, by, Updates(), order, Arithmetic::kFixedPoint, parts); };
  const std::vector<std::byte> whole = commit({0, 1, 2}, 1);
  EXPECT_EQ(commit({2, 0, 1}, 1), whole);
  EXPECT_EQ(commit({1, 2, 0}, 2), whole);
  EXPECT_EQ(commit({2, 1, 0}, 3), whole);
  const Difference d = Compare(FromBytes<double>(whole), FromBytes<double>(mixture.Commit(model, by, Updates(), {0, 1, 2})));
  EXPECT_LT(d.max_abs, 1e-10) << Words(d);
}

// A coded update with a value in every place that can have one.
std::vector<std::byte> SomeCodes(const UpdateEncoding& encoding) {
  std::vector<std::byte> coded(encoding.total_bytes());
  const std::vector<float> values = ToFloats(RandomValues(encoding.trainable, 4));
  if (encoding.codec == Codec::kPlain) return AsBytes(values);
  if (encoding.codec == Codec::kTopK) {
    for (uint32_t i = 0; i < encoding.kept; ++i) {
      const uint32_t index = i * 19;
      std::memcpy(coded.data() + i * 4, &index, 4);
      std::memcpy(coded.data() + (encoding.kept + i) * 4, &values[i], 4);
    }
    return coded;
  }
  const bool int4 = encoding.codec == Codec::kInt4;
  const size_t scales = int4 || encoding.codec == Codec::kInt8 ? encoding.blocks() * 4 : 0;
  for (size_t i = 0; i < scales; i += 4) {
    const float scale = 1.0f + static_cast<float>(i);
    std::memcpy(coded.data() + i, &scale, 4);
  }
  for (size_t i = scales; i < coded.size(); ++i) coded[i] = std::byte{static_cast<unsigned char>(int4 ? i % 7 * 16 + i % 5 : i % 60)};
  return coded;
}

// Runs end within a codec's blocks: each stretch is decoded with the codes and scales that hold there.
TEST(WeightRunsTest, FoldEncodedUpdatesLikeTheDecodedOnesOneByOne) {
  const TensorLayout layout = VectorLayout(1000);
  const WeightRuns runs = {{.end = 1, .factor = 2}, {.end = 130, .factor = 0}, {.end = 131, .factor = 0.5}, {.end = 900, .factor = 3}, {.end = 1000, .factor = 1}};
  for (const Codec codec : {Codec::kPlain, Codec::kBf16, Codec::kF16, Codec::kInt8, Codec::kInt4, Codec::kTopK}) {
    const UpdateEncoding encoding = UpdateEncoding::Of(codec, 0.05, layout);
    const std::vector<std::byte> coded = SomeCodes(encoding);
    std::vector<float> decoded(1000);
    DecodeRange(encoding, coded.data(), 0, decoded);
    const auto reducer = WithCodec(MakeMeanReducer(DType::kF32, Arithmetic::kFloat64), encoding);
    std::vector<double> sums(700, -1);
    const UpdateView view{.flat = coded.data(), .weight = 2, .runs = runs};
    const std::vector<UpdateView> three(3, view);
    ASSERT_TRUE(reducer->FoldBlock(reinterpret_cast<std::byte*>(sums.data()), 100, 700, three, /*fresh=*/true));
    for (size_t i = 0; i < sums.size(); ++i) {
      const double each = 2 * RunAt(runs, 100 + i).factor * static_cast<double>(decoded[100 + i]);
      ASSERT_EQ(sums[i], each + each + each) << static_cast<int>(codec) << " at " << i;
    }
  }
}

TEST(WeightRunsTest, MustAscendToTheLastElementWithFiniteFactors) {
  EXPECT_THAT(CheckRuns({}, 5), IsOk());
  EXPECT_THAT(CheckRuns(WeightRuns{{2, 1}, {5, 0}}, 5), IsOk());
  EXPECT_THAT(CheckRuns(WeightRuns{{2, 1}, {4, 0}}, 5), StatusIs(StatusCode::kInvalidArgument, HasSubstr("up to element 5, got 4")));
  EXPECT_THAT(CheckRuns(WeightRuns{{3, 1}, {3, 1}}, 3), StatusIs(StatusCode::kInvalidArgument, HasSubstr("ends after element 3")));
  EXPECT_THAT(CheckRuns(WeightRuns{{3, -1}}, 3), StatusIs(StatusCode::kInvalidArgument, HasSubstr("factor >= 0")));
  EXPECT_THAT(CheckRuns(WeightRuns{{3, std::nan("")}}, 3), StatusIs(StatusCode::kInvalidArgument));
}

TEST_F(ExpertWeightsTest, ItsMeasuresAndTheLoadOfAllAreNumPys) {
  Mixture mixture(layout_, {{"top_k", "1"}, {"router.name", "global_lbl"}, {"router.ema", golden_["ema"].dump()}}, {});
  const std::vector<RoundContributor> by = Contributors();
  const GlobalMoe first = mixture.state_->Next({}, by);
  ASSERT_EQ(first.layers.size(), 2u);
  EXPECT_EQ(first.step, 1u);
  const GlobalMoe before{.step = 7, .layers = {{.share = golden_["before"][0], .tokens = 5}, {.share = golden_["before"][1], .tokens = 5}}};
  const GlobalMoe after = mixture.state_->Next(before, by);
  EXPECT_EQ(after.step, 8u);
  for (size_t l = 0; l < 2; ++l) {
    EXPECT_EQ(after.layers[l].tokens, 180);
    for (size_t j = 0; j < 3; ++j) {
      EXPECT_NEAR(first.layers[l].share[j], golden_["share"][l][j].get<double>(), 1e-15);
      EXPECT_NEAR(after.layers[l].share[j], golden_["after"][l][j].get<double>(), 1e-15);
    }
  }
  EXPECT_EQ(mixture.state_->Next(before, {}), before) << "who sends nothing changes nothing";
  std::map<std::string, double> measured;
  mixture.state_->Measure(by, &measured);
  for (size_t l = 0; l < 2; ++l) {
    for (const auto& [name, value] : golden_["measures"][l].items()) {
      EXPECT_NEAR(measured.at(fmt::format("moe.layers.{}.{}", l, name)), value.get<double>(), 1e-12) << name;
    }
  }
  EXPECT_NEAR(measured.at("moe.max_vio"), (measured.at("moe.layers.0.max_vio") + measured.at("moe.layers.1.max_vio")) / 2, 1e-15);
  EXPECT_NEAR(measured.at("moe.balance"), 1, 1e-12) << "even scores: E·Σ f/E";
}

TensorLayout WithBias(DType dtype, size_t experts) {
  std::vector<TensorSpec> specs;
  for (size_t e = 0; e < experts; ++e) specs.push_back({.name = fmt::format("l.experts.{}.w", e), .shape = {2}, .dtype = dtype, .kind = TensorKind::kTrainable});
  specs.push_back({.name = "l.gate.e_score_correction_bias", .shape = {static_cast<int64_t>(experts)}, .dtype = dtype, .kind = TensorKind::kServerOwned});
  specs.push_back({.name = "running", .shape = {1}, .dtype = dtype, .kind = TensorKind::kBuffer});
  return LayoutOf(std::move(specs));
}

TEST(MoeStateTest, MovesTheServersBiasAsMegatronDoes) {
  const nlohmann::json golden = Golden("moe_reference.json")["megatron"]["sigmoid_bias"];
  const std::vector<double> bias = golden["bias"], moved = golden["updated_bias_u1e3"], counts = golden["counts"];
  const TensorLayout layout = WithBias(DType::kF64, bias.size());
  const Mixture mixture(layout, {{"router.name", "alf"}, {"router.step", "0.001"}, {"router.scale_by_std", "false"}}, {});
  std::vector<double> model(layout.float_count(), 3.5);
  std::copy(bias.begin(), bias.end(), model.end() - static_cast<ptrdiff_t>(bias.size()));
  // The batch in two clients.
  std::vector<int64_t> some, rest;
  for (const double c : counts) {
    some.push_back(static_cast<int64_t>(c) / 3);
    rest.push_back(static_cast<int64_t>(c) - some.back());
  }
  std::vector<std::byte> bytes = AsBytes(model);
  const std::vector<RoundContributor> by = {Mixture::Contributor(0, 1, StatsOf({some}, 1)), Mixture::Contributor(1, 1, StatsOf({rest}, 1))};
  ASSERT_THAT(mixture.state_->MoveBiases(1, by, bytes), IsOk());
  const std::vector<double> got = FromBytes<double>(bytes);
  for (size_t i = 0; i < layout.summed_count(); ++i) EXPECT_EQ(got[i], 3.5) << "only the bias moves";
  for (size_t j = 0; j < moved.size(); ++j) EXPECT_NEAR(got[layout.summed_count() + j], moved[j], 1e-6);
}

TEST(MoeStateTest, AStepOfTheBiasIsScaledByTheSpreadOfAllClientsScores) {
  const TensorLayout layout = WithBias(DType::kF32, 2);
  const Mixture mixture(layout, {{"router.name", "alf"}, {"router.step", "0.5"}, {"router.rule", "proportional"}, {"router.schedule", "sqrt"}, {"top_k", "1"}}, {});
  // Scores 0.9 and 0.1 of ten tokens: mean .5, deviation .4.
  const MoeStats stats = {{.counts = {10, 0}, .prob_sum = {9, 1}, .square_sum = 10 * (.81 + .01), .tokens = 10}};
  std::vector<std::byte> bytes(layout.total_bytes());
  ASSERT_THAT(mixture.state_->MoveBiases(4, std::vector<RoundContributor>{Mixture::Contributor(0, 1, stats)}, bytes), IsOk());
  const std::vector<float> got = FromBytes<float>(bytes);
  EXPECT_NEAR(got[layout.summed_count()], -0.5 * 0.4 / 2, 1e-7);
  EXPECT_NEAR(got[layout.summed_count() + 1], 0.5 * 0.4 / 2, 1e-7);
}

// Of one layer of two experts: tokens whose margin is `of_zero` at expert 0 and `of_one` at expert 1.
MoeLayerStats WithMargins(const std::vector<double>& of_zero, const std::vector<double>& of_one) {
  const auto tokens = static_cast<int64_t>(of_zero.size());
  MoeLayerStats stats{.counts = {tokens, 0}, .prob_sum = {1, 1}, .square_sum = 1, .tokens = tokens, .margins = std::vector<int64_t>(64)};
  const MarginBins bins;
  for (const double margin : of_zero) ++stats.margins[bins.Bin(margin)];
  for (const double margin : of_one) ++stats.margins[32 + bins.Bin(margin)];
  return stats;
}

TEST(MoeStateTest, MovesTheServersBiasByTheQuantileOfAllClientsMargins) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const TensorLayout layout = WithBias(dtype, 2);
    const Mixture mixture(layout, {{"router.name", "quantile"}, {"router.scope", "global"}, {"router.rate", "0.25"}, {"top_k", "1"}}, {});
    // Of six tokens the fourth largest margin (round(1·6/2) + 1): 0.3 of the bin [¼, ½) of four, and −0.7 of the bin (−1, −½] of five.
    const std::vector<RoundContributor> by = {Mixture::Contributor(0, 1, {WithMargins({0.9, 0.3}, {-0.7, -0.6})}),
                                              Mixture::Contributor(1, 5, {WithMargins({0.3, 0.3, 0.3, 0.1}, {-0.6, -0.6, -0.6, 1.5})})};
    EXPECT_THAT(mixture.state_->CheckStats(by[1].moe), IsOk());
    std::vector<std::byte> bytes(layout.total_bytes());
    ASSERT_THAT(mixture.state_->MoveBiases(1, by, bytes), IsOk());
    const auto at = [&](size_t i) { return dtype == DType::kF32 ? static_cast<double>(FromBytes<float>(bytes)[i]) : FromBytes<double>(bytes)[i]; };
    EXPECT_NEAR(at(layout.summed_count()), -0.25 * (0.5 - 0.25 * 2.5 / 4), 1e-7);
    EXPECT_NEAR(at(layout.summed_count() + 1), 0.25 * (0.5 + 0.5 * 2.5 / 5), 1e-7);
    for (size_t i = 0; i < layout.summed_count(); ++i) EXPECT_EQ(at(i), 0) << "only the bias moves";
    // Whoever adds them up, in whatever order.
    std::vector<RoundContributor> one = {by[1]};
    one[0].moe[0] += by[0].moe[0];
    std::vector<std::byte> same(layout.total_bytes());
    ASSERT_THAT(mixture.state_->MoveBiases(1, one, same), IsOk());
    EXPECT_EQ(same, bytes);
  }
}

TEST(MoeStateTest, MarginsOfAnotherSizeOrOfOtherTokensAreRefused) {
  const Mixture counting(WithBias(DType::kF32, 2), {{"router.name", "quantile"}, {"router.scope", "global"}, {"top_k", "1"}}, {});
  const auto check = [&](const std::function<void(MoeLayerStats*)>& change) {
    MoeStats stats = {WithMargins({0.1, 0.2}, {-0.1, -0.2})};
    change(stats.data());
    return counting.state_->CheckStats(stats);
  };
  const auto refused = [](const std::string& why) { return StatusIs(StatusCode::kInvalidArgument, HasSubstr(why)); };
  EXPECT_THAT(check([](MoeLayerStats*) {}), IsOk());
  EXPECT_THAT(check([](MoeLayerStats* l) { l->margins.clear(); }), refused("expected 64 counts of margins (32 bins for each of 2 experts), got 0"));
  EXPECT_THAT(check([](MoeLayerStats* l) { l->margins.resize(128); }), refused("got 128"));
  EXPECT_THAT(check([](MoeLayerStats* l) { ++l->margins[40]; }), refused("margins of expert 1: expected those of 2 tokens, got 3"));
  EXPECT_THAT(counting.state_->CheckStats({}), refused("model.params.router: quantile of scope global needs the statistics of 1 layers"));
  const Mixture plain(WithBias(DType::kF32, 2), {{"router.name", "quantile"}, {"top_k", "1"}}, {});
  EXPECT_THAT(plain.state_->CheckStats({WithMargins({0.1}, {0.1})}), refused("expected 0 counts of margins"));
}

TEST(MoeStateTest, WhatTheServerOwnsIsInNoUpdateAndNoStepMovesIt) {
  const TensorLayout layout = WithBias(DType::kF64, 2);
  Mixture mixture(layout, {{"router", "alf"}}, {});
  const TensorLayout update = *mixture.strategy_->UpdateLayout(layout);
  EXPECT_EQ(update.Find("l.gate.e_score_correction_bias"), nullptr);
  EXPECT_EQ(update.float_count(), layout.summed_count());
  const std::vector<double> model = {1, 2, 3, 4, /*running=*/5, /*bias=*/6, 7};
  const std::vector<RoundContributor> by = {Mixture::Contributor(0, 2, StatsOf({{3, 3}}, 2))};
  EXPECT_EQ(FromBytes<double>(mixture.Commit(AsBytes(model), by, {AsBytes<double>({1, 1, 1, 1, 9})}, {0})), (std::vector<double>{2, 3, 4, 5, 9, 6, 7}));
}

TEST(FindExpertsTest, FindsLayersByTheirTensorsNamesAndLeavesOthersAlone) {
  const MoePlaces places = FindExperts(LayoutOfNames({"a.experts.0.w1", "a.experts.0.w2", "a.experts.1.w1", "a.experts.1.w2", "mid", "b.experts.1.w", "b.experts.0.w",
                                                      "odd.experts.1.w", "odd.experts.3.w", "one.experts.0.w", "x.experts.first.w"}, 3));
  ASSERT_EQ(places.layers.size(), 2u);
  EXPECT_EQ(places.layers[0].name, "a");
  EXPECT_EQ(places.layers[1].name, "b");
  EXPECT_FALSE(places.layers[0].bias.has_value());
  std::vector<std::string> runs;
  for (const ExpertRun& run : places.runs) runs.push_back(run.layer ? fmt::format("{}:{}@{}", *run.layer, run.expert, run.end) : fmt::format("-@{}", run.end));
  EXPECT_THAT(runs, ::testing::ElementsAre("0:0@6", "0:1@12", "-@15", "1:1@18", "1:0@21", "-@33"));
  EXPECT_TRUE(FindExperts(VectorLayout(4)).layers.empty());
  EXPECT_TRUE(FindExperts(VectorLayout(4)).runs.empty());
}

TEST(MoeStateTest, StatisticsThatLieAreRefusedByLayerWithWhatWasExpected) {
  const Mixture mixture(LayoutOfNames({"l.experts.0.w", "l.experts.1.w", "l.experts.2.w"}, 2), {{"top_k", "2"}}, {{"expert_weights", "tokens"}});
  const auto check = [&](const std::function<void(MoeStats*)>& change) {
    MoeStats stats = StatsOf({{4, 6, 10}}, 2);
    change(&stats);
    return mixture.state_->CheckStats(stats);
  };
  EXPECT_THAT(check([](MoeStats*) {}), IsOk());
  EXPECT_THAT(check([](MoeStats* s) { s->clear(); }), StatusIs(StatusCode::kInvalidArgument, HasSubstr("strategy.expert_weights: tokens needs the statistics of 1 layers")));
  EXPECT_THAT(check([](MoeStats* s) { s->push_back(MoeLayerStats(s->front())); }), StatusIs(StatusCode::kInvalidArgument, HasSubstr("1 layers, got 2")));
  EXPECT_THAT(check([](MoeStats* s) { s->front().counts.pop_back(); }), StatusIs(StatusCode::kInvalidArgument, HasSubstr("layer 0: expected 3 experts, got 2")));
  EXPECT_THAT(check([](MoeStats* s) { s->front().tokens = 9; }), StatusIs(StatusCode::kInvalidArgument, HasSubstr("18 pairs at most, got 20")));
}

absl::Status Checked(const TensorLayout& layout, ParamMap model, StrategySpec strategy, bool private_job = false) {
  JobSpec spec;
  spec.model.zoo = "moe_mlp";
  spec.model.params = std::move(model);
  spec.strategy = std::move(strategy);
  spec.privacy.enabled = private_job;
  TRIB_ASSIGN_OR_RETURN(const auto made, MakeStrategy(spec.strategy, spec.local));
  return CheckJob(spec, *made, layout);
}

TEST(MoeStateTest, ImpossiblePairsAreRefusedByNameAndReason) {
  const TensorLayout experts = LayoutOfNames({"l.experts.0.w", "l.experts.1.w"}, 2), none = VectorLayout(4, DType::kF64);
  const ParamMap tokens = {{"expert_weights", "tokens"}};
  const auto refused = [](const std::string& why) { return StatusIs(StatusCode::kInvalidArgument, HasSubstr(why)); };
  EXPECT_THAT(Checked(experts, {}, {.name = "fedavg", .params = tokens}), IsOk());
  EXPECT_THAT(Checked(experts, {}, {.name = "fedadam", .params = tokens}), IsOk());
  EXPECT_THAT(Checked(none, {}, {.name = "fedavg", .params = tokens}), refused("the model has no tensors '<layer>.experts.<e>.…'"));
  EXPECT_THAT(Checked(experts, {}, {.name = "median", .params = tokens}), refused("strategy 'median' keeps every update whole"));
  EXPECT_THAT(Checked(experts, {}, {.name = "scaffold", .params = tokens}), refused("strategy 'scaffold' sums a second vector"));
  EXPECT_THAT(Checked(experts, {}, {.name = "fedasync", .params = tokens}), refused("commits single updates"));
  EXPECT_THAT(Checked(experts, {}, {.name = "fedavg", .params = {{"expert_weights", "examples"}}}), refused("mean|tokens"));
  EXPECT_THAT(Checked(experts, {{"router", "alf"}}, {.name = "fedavg", .params = {}}), refused("expected a server-owned tensor 'l.gate.e_score_correction_bias' of 2 elements"));
  EXPECT_THAT(Checked(experts, {{"router.name", "alf"}, {"router.rule", "signs"}}, {.name = "fedavg", .params = {}}), refused("did you mean 'sign'"));
  EXPECT_THAT(Checked(experts, {{"top_k", "3"}}, {.name = "fedavg", .params = {}}), refused("at most the 2 experts"));
  const ParamMap quantile = {{"router.name", "quantile"}, {"router.scope", "global"}, {"top_k", "1"}};
  const auto with = [](ParamMap params, const std::string& key, const std::string& value) {
    params[key] = value;
    return params;
  };
  const TensorLayout owned = WithBias(DType::kF32, 2);
  EXPECT_THAT(Checked(owned, quantile, {.name = "fedavg", .params = {}}), IsOk());
  EXPECT_THAT(Checked(experts, quantile, {.name = "fedavg", .params = {}}), refused("quantile of scope global: expected a server-owned tensor 'l.gate.e_score_correction_bias'"));
  EXPECT_THAT(Checked(owned, with(quantile, "top_k", "2"), {.name = "fedavg", .params = {}}), refused("expected top_k below the 2 experts of layer 'l', got 2"));
  EXPECT_THAT(Checked(owned, with(quantile, "router.bins", "48"), {.name = "fedavg", .params = {}}), refused("bins"));
  EXPECT_THAT(Checked(owned, quantile, {.name = "fedavg", .params = {}}, /*private_job=*/true), refused("not sent in a job with privacy"));
  std::vector<TensorSpec> wide;
  for (size_t l = 0; l < 3; ++l) {
    for (size_t e = 0; e < 1024; ++e) wide.push_back({.name = fmt::format("{}.experts.{}.w", l, e), .shape = {1}, .dtype = DType::kF32, .kind = TensorKind::kTrainable});
    wide.push_back({.name = fmt::format("{}.gate.e_score_correction_bias", l), .shape = {1024}, .dtype = DType::kF32, .kind = TensorKind::kServerOwned});
  }
  EXPECT_THAT(Checked(LayoutOf(wide), with(quantile, "router.bins", "256"), {.name = "fedavg", .params = {}}), refused("at most 262144 counts of margins"));
  EXPECT_THAT(Checked(LayoutOf(wide), with(quantile, "router.bins", "64"), {.name = "fedavg", .params = {}}), IsOk());
  EXPECT_THAT(Checked(experts, {{"router", "global_lbl"}}, {.name = "fedavg", .params = {}}, /*private_job=*/true), refused("not sent in a job with privacy"));
  EXPECT_THAT(Checked(experts, {{"aux.lbl", "0.1"}, {"aux.lbl_scope", "global"}}, {.name = "fedavg", .params = {}}, /*private_job=*/true), refused("not sent in a job with privacy"));
  EXPECT_THAT(Checked(experts, {}, {.name = "fedavg", .params = tokens}, /*private_job=*/true), refused("strategy.expert_weights: tokens: it needs every client's counts"));
}

}  // namespace
}  // namespace tributary::aggregator
