// Adapters together: sums of products against dense ones made here, the error table of moe_lora.md §5.2, and what is refused.
#include "aggregator/core/adapters.h"

#include <gmock/gmock.h>

#include <cmath>
#include <functional>
#include <map>
#include <random>

#include "aggregator/core/aggregate.h"
#include "aggregator/core/job_check.h"
#include "aggregator/core/lora_product.h"
#include "aggregator/core/privacy/job_privacy.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

using Dense = std::vector<double>;

struct Shape {
  std::string layer;
  int64_t in, out, rank;
  bool triplets = false;
};
const std::vector<Shape> kTwoLayers = {{"fc1", 7, 5, 3}, {"model.layers.0.self_attn.q_proj", 6, 9, 2}};
const std::vector<Shape> kTriplets = {{"fc1", 7, 5, 3, true}, {"model.layers.0.self_attn.q_proj", 6, 9, 2, true}};

TensorLayout ModelLayout(AdapterMode mode, const std::vector<Shape>& shapes, DType dtype = DType::kF64) {
  std::vector<TensorSpec> specs;
  for (const Shape& s : shapes) {
    for (AdapterTensor& tensor : AdapterTensors(mode, {.layer = s.layer, .in = s.in, .out = s.out, .rank = s.rank, .triplets = s.triplets}, dtype)) specs.push_back(std::move(tensor.spec));
  }
  return LayoutOf(std::move(specs));
}

Dense Product(const Dense& b, const Dense& a, size_t out, size_t rank, size_t in) {
  Dense product(out * in);
  for (size_t i = 0; i < out; ++i) {
    for (size_t j = 0; j < in; ++j) {
      for (size_t l = 0; l < rank; ++l) product[i * in + j] += b[i * rank + l] * a[l * in + j];
    }
  }
  return product;
}

Dense Slice(const Dense& flat, size_t first, size_t count) { return {flat.begin() + static_cast<ptrdiff_t>(first), flat.begin() + static_cast<ptrdiff_t>(first + count)}; }

double Distance(const Dense& a, const Dense& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}
double Norm(const Dense& a) { return Distance(a, Dense(a.size())); }

// residual + B·R·A or residual + B·diag(e)·A of a model, each layer's.
Dense Whole(AdapterMode mode, const AdapterPair& pair, const Dense& model) {
  Dense b = Slice(model, pair.b, pair.out * pair.rank);
  if (mode == AdapterMode::kFedSb) b = Product(b, Slice(model, pair.r, pair.rank * pair.rank), pair.out, pair.rank, pair.rank);
  for (size_t i = 0; i < b.size() && pair.triplets; ++i) b[i] *= model[pair.e + i % pair.rank];
  Dense whole = Product(b, Slice(model, pair.a, pair.rank * pair.in), pair.out, pair.rank, pair.in);
  if (!NeedsResidual(mode)) return whole;
  for (size_t i = 0; i < whole.size(); ++i) whole[i] += model[pair.residual + i];
  return whole;
}

// One version of a job: clients change a model's trainable elements, the strategy makes the next model.
class AdapterVersion {
 public:
  AdapterVersion(AdapterMode mode, const std::vector<Shape>& shapes, ParamMap params = {}, const std::string& name = "fedavg")
      : mode_(mode), layout_(ModelLayout(mode, shapes)) {
    params["adapters"] = AdapterModeName(mode);
    auto made = MakeStrategy({.name = name, .params = std::move(params)});
    EXPECT_TRUE(made.ok()) << made.status();
    strategy_ = *std::move(made);
    pairs_ = *FindAdapters(mode, layout_);
    previous_ = RandomValues(layout_.float_count(), 17);
  }

  void SetPrevious(Dense previous) { previous_ = std::move(previous); }
  // A client's model; elements that do not train are the previous ones.
  void Add(const Dense& model, double weight) {
    Dense after = model;
    std::copy(previous_.begin() + static_cast<ptrdiff_t>(layout_.trainable_count()), previous_.end(), after.begin() + static_cast<ptrdiff_t>(layout_.trainable_count()));
    if (mode_ == AdapterMode::kRoLora) {
      for (const AdapterPair& pair : pairs_) {
        const size_t frozen = MovesB(version_) ? pair.a : pair.b, count = pair.rank * (MovesB(version_) ? pair.in : pair.out);
        std::copy_n(previous_.begin() + static_cast<ptrdiff_t>(frozen), count, after.begin() + static_cast<ptrdiff_t>(frozen));
      }
    }
    clients_.push_back(after);
    weights_.push_back(weight);
  }
  void AddRandom(int clients) {
    for (int k = 0; k < clients; ++k) Add(RandomValues(layout_.float_count(), 100 + static_cast<uint64_t>(k)), 0.5 + k);
  }
  void SetVersion(uint64_t version) { version_ = version; }
  void SetRanks(const RankSchedule& ranks) { strategy_->set_ranks(ranks); }

  Dense Next(bool backwards = false) {
    TensorLayout update_layout = *strategy_->UpdateLayout(layout_);
    Aggregate sum(*strategy_, layout_, Arithmetic::kFloat64, 64);
    std::vector<RoundContributor> contributors;
    for (size_t i = 0; i < clients_.size(); ++i) {
      const size_t k = backwards ? clients_.size() - 1 - i : i;
      Dense delta(layout_.trainable_count());
      for (size_t e = 0; e < delta.size(); ++e) delta[e] = clients_[k][e] - previous_[e];
      std::vector<std::byte> flat = AsBytes(delta);
      if (mode_ == AdapterMode::kRoLora) flat = PackLive(layout_, pairs_, MovesB(version_), flat);
      EXPECT_EQ(flat.size(), update_layout.total_bytes());
      RoundContributor contributor;
      contributor.key = {.client = fmt::format("{:04}", k), .task = k + 1, .update = Id(k)};
      contributor.weight = weights_[k];
      EXPECT_THAT(sum.Fold(contributor, flat), IsOk());
      contributors.push_back(contributor);
    }
    std::vector<std::byte> next(layout_.total_bytes());
    MemoryState state;
    measured_.clear();
    const std::vector<std::byte> previous = AsBytes(previous_);
    EXPECT_THAT(sum.Step({.facts = {.version = version_, .sum_weight = OrderFreeSum(weights_), .registered = 9, .contributors = contributors},
                          .previous = previous, .base = {}, .measured = &measured_},
                         &state, next),
                IsOk());
    return FromBytes<double>(next);
  }

  // residual + Σ p·B·A, by the dense products.
  Dense Sum(const AdapterPair& pair) const {
    Dense sum(pair.out * pair.in);
    double weights = 0;
    for (const double weight : weights_) weights += weight;
    for (size_t k = 0; k < clients_.size(); ++k) {
      const Dense whole = Whole(mode_, pair, clients_[k]);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += weights_[k] / weights * whole[i];
    }
    return sum;
  }
  // ‖new − sum‖ / ‖sum − residual‖ over all layers.
  double Error(const Dense& next) const {
    double error = 0, norm = 0;
    for (const AdapterPair& pair : pairs_) {
      Dense sum = Sum(pair);
      error += std::pow(Distance(Whole(mode_, pair, next), sum), 2);
      if (NeedsResidual(mode_)) {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] -= previous_[pair.residual + i];
      }
      norm += std::pow(Norm(sum), 2);
    }
    return std::sqrt(error / norm);
  }

  const std::vector<AdapterPair>& pairs() const { return pairs_; }
  const TensorLayout& layout() const { return layout_; }
  const Strategy& strategy() const { return *strategy_; }
  const Dense& previous() const { return previous_; }
  double measured(const char* name = kAdapterError) const { return measured_.at(name); }

 private:
  AdapterMode mode_;
  TensorLayout layout_;
  std::unique_ptr<Strategy> strategy_;
  std::vector<AdapterPair> pairs_;
  Dense previous_;
  std::vector<Dense> clients_;
  std::vector<double> weights_;
  uint64_t version_ = 1;
  std::map<std::string, double> measured_;
};

class ExactModeTest : public ::testing::TestWithParam<AdapterMode> {};
INSTANTIATE_TEST_SUITE_P(Modes, ExactModeTest,
                         ::testing::Values(AdapterMode::kFfa, AdapterMode::kRoLora, AdapterMode::kFlora, AdapterMode::kFedEx, AdapterMode::kFedSb),
                         [](const auto& info) { return std::string(AdapterModeName(info.param)); });

TEST_P(ExactModeTest, TheNewModelIsTheMeanOfTheClientsProducts) {
  for (const uint64_t version : {1, 2}) {
    AdapterVersion made(GetParam(), kTwoLayers);
    made.SetVersion(version);
    made.AddRandom(5);
    const Dense next = made.Next();
    EXPECT_LE(made.Error(next), 1e-14) << "version " << version;
    for (size_t i = made.layout().trainable_count(); i < next.size() && !NeedsResidual(GetParam()); ++i) EXPECT_EQ(next[i], made.previous()[i]);
  }
}

TEST_P(ExactModeTest, OneClientAloneGivesItsOwnAdapter) {
  AdapterVersion made(GetParam(), kTwoLayers);
  made.AddRandom(1);
  EXPECT_LE(made.Error(made.Next()), 1e-14);
}

TEST(AdaptersTest, MeansOfFactorsAreNotTheMeanOfProductsAndTheErrorIsMeasured) {
  AdapterVersion made(AdapterMode::kFedIt, kTwoLayers);
  made.AddRandom(5);
  const Dense next = made.Next();
  const double error = made.Error(next);
  EXPECT_GT(error, 0.1);
  EXPECT_NEAR(made.measured(), error, 1e-13);
  AdapterVersion sums(AdapterMode::kFedIt, kTwoLayers, {{"adapter_error", "skip"}});
  EXPECT_EQ(sums.strategy().whole_reducer(), nullptr);
  sums.AddRandom(5);
  EXPECT_LE(Compare(sums.Next(), next).max_abs, 1e-15);
}

TEST(AdaptersTest, FlexLoraIsTheBestApproximationOfItsRank) {
  AdapterVersion made(AdapterMode::kFlexLora, kTwoLayers);
  made.AddRandom(5);
  const Dense next = made.Next();
  EXPECT_NEAR(made.measured(), made.Error(next), 1e-13);
  double left = 0, norm = 0;
  for (const AdapterPair& pair : made.pairs()) {
    // Eckart and Young: what is left of the dense sum are its smaller singular values, here by deflation of the dense matrix.
    const Dense sum = made.Sum(pair);
    LowRank whole{Matrix{pair.out, pair.in, sum}, Matrix::Zero(pair.in, pair.in)};
    for (size_t i = 0; i < pair.in; ++i) whole.a(i, i) = 1;
    const LowRank best = Truncated(whole, pair.rank);
    Dense rest = sum;
    AddProduct(best, -1, rest);
    left += std::pow(Norm(rest), 2);
    norm += std::pow(Norm(sum), 2);
    // No other pair of factors near it does better.
    const double found = Distance(Whole(AdapterMode::kFlexLora, pair, next), sum);
    std::mt19937_64 random(5);
    std::normal_distribution<double> normal(0, 1e-3);
    for (int attempt = 0; attempt < 50; ++attempt) {
      Dense other = next;
      for (double& value : other) value += normal(random);
      EXPECT_GE(Distance(Whole(AdapterMode::kFlexLora, pair, other), sum), found);
    }
  }
  EXPECT_NEAR(made.Error(next), std::sqrt(left / norm), 1e-12);
}

// moe_lora.md §5.2: C = 8, r = 4, 64×48; B of each client its own, A the common one plus d times its own.
TEST(AdaptersTest, TheErrorTableOfTheNote) {
  struct Row { double difference, fedit, flexlora; };
  for (const Row& row : {Row{.1, .085, .079}, Row{.5, .41, .38}, Row{1, .67, .61}}) {
    std::map<AdapterMode, double> error;
    for (const AdapterMode mode : {AdapterMode::kFedIt, AdapterMode::kFlexLora, AdapterMode::kFlora, AdapterMode::kFedEx, AdapterMode::kFfa}) {
      double sum = 0;
      for (uint64_t seed = 0; seed < 3; ++seed) {
        AdapterVersion made(mode, {{"w", 48, 64, 4}});
        const AdapterPair& pair = made.pairs()[0];
        Dense previous(made.layout().float_count());
        const Dense common = RandomValues(4 * 48, 1000 * seed);
        std::copy(common.begin(), common.end(), previous.begin() + static_cast<ptrdiff_t>(pair.a));
        made.SetPrevious(previous);
        for (uint64_t k = 0; k < 8; ++k) {
          Dense model = previous;
          const Dense b = RandomValues(64 * 4, 1000 * seed + 2 * k + 1), a = RandomValues(4 * 48, 1000 * seed + 2 * k + 2);
          for (size_t i = 0; i < b.size(); ++i) model[pair.b + i] = b[i];
          for (size_t i = 0; i < a.size() && mode != AdapterMode::kFfa; ++i) model[pair.a + i] += row.difference * a[i];
          made.Add(model, 1);
        }
        const Dense next = made.Next();
        sum += made.Error(next) / 3;
      }
      error[mode] = sum;
    }
    EXPECT_NEAR(error[AdapterMode::kFedIt], row.fedit, 0.04) << row.difference;  // one draw differs by .02 from another
    EXPECT_NEAR(error[AdapterMode::kFlexLora], row.flexlora, 0.04) << row.difference;
    EXPECT_LT(error[AdapterMode::kFlexLora], error[AdapterMode::kFedIt]);
    for (const AdapterMode exact : {AdapterMode::kFlora, AdapterMode::kFedEx, AdapterMode::kFfa}) EXPECT_LE(error[exact], 1e-15) << AdapterModeName(exact);
  }
}

TEST(AdaptersTest, ClientsOfUnequalRanksAddUp) {
  for (const AdapterMode mode : {AdapterMode::kFlora, AdapterMode::kFlexLora}) {
    AdapterVersion made(mode, {{"w", 12, 10, 8}});
    const AdapterPair& pair = made.pairs()[0];
    std::vector<size_t> ranks = {2, 4, 8};
    Dense exact(120);
    for (size_t k = 0; k < ranks.size(); ++k) {
      const Dense b = RandomValues(10 * ranks[k], 7 * k + 1), a = RandomValues(ranks[k] * 12, 7 * k + 2);
      const Dense product = Product(b, a, 10, ranks[k], 12);
      for (size_t i = 0; i < exact.size(); ++i) exact[i] += product[i] / 3;
      Dense model(made.layout().float_count());  // the components that it does not have are 0
      for (size_t i = 0; i < 10; ++i) std::copy_n(b.begin() + static_cast<ptrdiff_t>(i * ranks[k]), ranks[k], model.begin() + static_cast<ptrdiff_t>(pair.b + i * 8));
      std::copy(a.begin(), a.end(), model.begin() + static_cast<ptrdiff_t>(pair.a));
      made.Add(model, 2);
    }
    const Dense next = made.Next();
    Dense got = Whole(mode, pair, next);
    if (mode == AdapterMode::kFlora) {
      for (size_t i = 0; i < got.size(); ++i) got[i] -= made.previous()[pair.residual + i];
      EXPECT_LE(Distance(got, exact), 1e-13);
    } else {
      EXPECT_LE(Distance(got, exact), 0.5 * Norm(exact));  // of 14 components the largest 8
    }
  }
}

TEST(AdaptersTest, FloraBeginsAnewWithAdaptersThatChangeNothing) {
  AdapterVersion made(AdapterMode::kFlora, {{"w", 400, 10, 8}});
  made.AddRandom(3);
  const Dense next = made.Next();
  const AdapterPair& pair = made.pairs()[0];
  EXPECT_EQ(Slice(next, pair.b, 80), Dense(80));
  const Dense a = Slice(next, pair.a, 3200);
  double mean = 0, square = 0, largest = 0;
  for (const double value : a) {
    mean += value / 3200;
    square += value * value / 3200;
    largest = std::max(largest, std::abs(value));
  }
  EXPECT_LE(largest, 0.05);  // 1/√400
  EXPECT_NEAR(mean, 0, 0.002);
  EXPECT_NEAR(square, 0.0025 / 3, 0.00005);
  AdapterVersion again(AdapterMode::kFlora, {{"w", 400, 10, 8}});
  again.AddRandom(3);
  EXPECT_EQ(again.Next(), next);
  made.SetVersion(2);
  EXPECT_NE(Slice(made.Next(), pair.a, 3200), a);
}

TEST(AdaptersTest, OrderOfArrivalChangesNoBit) {
  for (const AdapterMode mode : {AdapterMode::kFedIt, AdapterMode::kFlora, AdapterMode::kFlexLora, AdapterMode::kFedEx}) {
    AdapterVersion made(mode, kTwoLayers);
    made.AddRandom(6);
    EXPECT_EQ(made.Next(), made.Next(/*backwards=*/true)) << AdapterModeName(mode);
  }
}

TEST(AdaptersTest, WhatTravelsUpIsWhatTrains) {
  const std::vector<Shape> shapes = {{"w", 20, 10, 4}};
  const std::map<AdapterMode, size_t> expected = {{AdapterMode::kFedIt, 120}, {AdapterMode::kFfa, 40},     {AdapterMode::kRoLora, 80}, {AdapterMode::kFlora, 120},
                                                  {AdapterMode::kFlexLora, 120}, {AdapterMode::kFedEx, 120}, {AdapterMode::kFedSb, 16}};
  for (const auto& [mode, elements] : expected) {
    AdapterVersion made(mode, shapes);
    const TensorLayout update = *made.strategy().UpdateLayout(made.layout());
    EXPECT_EQ(update.float_count(), elements) << AdapterModeName(mode);
    EXPECT_EQ(update.trainable_count(), elements);
  }
}

TEST(AdaptersTest, AnElementwiseModeGoesWithOtherServerSteps) {
  AdapterVersion made(AdapterMode::kFfa, kTwoLayers, {}, "fedadam");
  made.AddRandom(3);
  const Dense next = made.Next();
  EXPECT_NE(Slice(next, 0, made.layout().trainable_count()), Slice(made.previous(), 0, made.layout().trainable_count()));
  for (size_t i = made.layout().trainable_count(); i < next.size(); ++i) EXPECT_EQ(next[i], made.previous()[i]);
}

TEST(AdaptersTest, RoLoraRefusesTheOtherPhase) {
  AdapterVersion made(AdapterMode::kRoLora, kTwoLayers);
  EXPECT_THAT(CheckPhase(made.strategy(), {{kAdapterPhase, 1}}, 0), IsOk());
  EXPECT_THAT(CheckPhase(made.strategy(), {{kAdapterPhase, 0}}, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("wrong_phase: version 1 moves B; got the change of A")));
  EXPECT_THAT(CheckPhase(made.strategy(), {{kAdapterPhase, 0}}, 1), IsOk());
  EXPECT_THAT(CheckPhase(made.strategy(), {{kAdapterPhase, 1}}, 1), StatusIs(StatusCode::kInvalidArgument, HasSubstr("wrong_phase")));
  AdapterVersion other(AdapterMode::kFedEx, kTwoLayers);
  EXPECT_THAT(CheckPhase(other.strategy(), {}, 1), IsOk());
}

TEST(AdaptersTest, TripletsAreSummedAsProductsToo) {
  AdapterVersion exact(AdapterMode::kFedEx, kTriplets);
  exact.AddRandom(5);
  EXPECT_LE(exact.Error(exact.Next()), 1e-14);
  AdapterVersion means(AdapterMode::kFedIt, kTriplets);
  means.AddRandom(5);
  const Dense next = means.Next();
  EXPECT_GT(means.Error(next), 0.1);
  EXPECT_NEAR(means.measured(), means.Error(next), 1e-13);
}

// What travels of importance is averaged like everything else, and decides at the root over all layers.
TEST(AdaptersTest, TheClientsMeanImportanceDecidesWhichTripletsStay) {
  for (const AdapterMode mode : {AdapterMode::kFedIt, AdapterMode::kFedEx}) {
    AdapterVersion made(mode, kTriplets);
    made.AddRandom(4);
    const Dense free = made.Next();
    made.SetRanks({.versions = 2, .init_versions = 0, .final_versions = 1, .interval = 1, .target_rank = 1});
    const Dense next = made.Next();
    Dense importance, kept;
    for (const AdapterPair& pair : made.pairs()) {
      for (size_t l = 0; l < pair.rank; ++l) {
        EXPECT_EQ(next[pair.importance + l], free[pair.importance + l]);
        importance.push_back(free[pair.importance + l]);
        kept.push_back(next[pair.e + l]);
        EXPECT_TRUE(next[pair.e + l] == 0 || next[pair.e + l] == free[pair.e + l]);
        EXPECT_EQ(next[pair.mask + l], next[pair.e + l] != 0);
      }
      // The residual is that of the means before a triplet goes.
      for (size_t i = 0; i < pair.in * pair.out && NeedsResidual(mode); ++i) EXPECT_EQ(next[pair.residual + i], free[pair.residual + i]);
    }
    Dense sorted = importance;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < kept.size(); ++i) EXPECT_EQ(kept[i] != 0, importance[i] > sorted[2]) << AdapterModeName(mode) << i;  // the 2 of 5 that matter most
    EXPECT_EQ(made.measured(kAdapterTriplets), 2);
    EXPECT_EQ(made.Next(/*backwards=*/true), next);
  }
}

JobSpec AdapterJob(const std::string& strategy, ParamMap params) {
  JobSpec spec;
  spec.model.zoo = "mlp";
  spec.model.adapter.kind = "lora";
  spec.strategy = {.name = strategy, .params = std::move(params)};
  spec.cohort.size = 3;
  return spec;
}

// What MakeStrategy or CheckJob says of a job whose model fits its mode.
absl::Status Check(const JobSpec& spec) {
  const auto strategy = MakeStrategy(spec.strategy, spec.local);
  if (!strategy.ok()) return strategy.status();
  return CheckJob(spec, **strategy, ModelLayout((*strategy)->adapters(), kTwoLayers, DType::kF32));
}

TEST(AdaptersTest, JobsThatDoNotFitAreRefusedWithTheReason) {
  EXPECT_THAT(Check(AdapterJob("fedavg", {{"adapters", "fedex"}})), IsOk());
  EXPECT_THAT(Check(AdapterJob("fedavg", {})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("nothing says how its factors are combined")));
  EXPECT_THAT(Check(AdapterJob("fedavg", {{"adapters", "fedx"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("did you mean 'fedex'")));
  EXPECT_THAT(Check(AdapterJob("fedbuff", {{"adapters", "rolora"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("an update from an older version moves the other one")));
  EXPECT_THAT(Check(AdapterJob("fedadam", {{"adapters", "flora"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("expected strategy fedavg, got fedadam")));
  EXPECT_THAT(Check(AdapterJob("fedavg", {{"adapters", "fedex"}, {"server_lr", "0.5"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("server_lr")));
  EXPECT_THAT(Check(AdapterJob("fedavg", {{"adapters", "ffa"}, {"buffers", "local"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("they are the server's")));
  JobSpec spec = AdapterJob("fedavg", {{"adapters", "fedit"}});
  spec.model.adapter.kind = "";
  EXPECT_THAT(Check(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("which the job does not have")));
  for (const char* mode : {"fedit", "ffa", "rolora", "fedex", "fedsb"}) {
    spec = AdapterJob("fedavg", {{"adapters", mode}});
    spec.model.adapter.client_ranks = {2, 4, 8};
    spec.model.adapter.rank = 8;
    EXPECT_THAT(Check(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("unequal ranks"))) << mode;
  }
  for (const char* mode : {"flora", "flexlora"}) {
    spec.strategy.params["adapters"] = mode;
    EXPECT_THAT(Check(spec), IsOk()) << mode;
  }
  // Sums that nobody may look into: not where every update is looked at.
  spec = AdapterJob("fedavg", {{"adapters", "flora"}});
  spec.codec = "int8";
  EXPECT_THAT(Check(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("flora keeps every update whole until the commit, which does not go with codec int8")));
  spec.codec = "f32";
  spec.hierarchy.shape = HierarchyShape::kTree;
  EXPECT_THAT(Check(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("hierarchy.shape tree")));
  spec.hierarchy.shape = HierarchyShape::kAuto;
  spec.privacy.enabled = true;
  EXPECT_THAT(Check(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("privacy, whose noise covers sums alone")));
  spec.privacy.enabled = false;
  spec.codec = "int8";
  spec.strategy.params = {{"adapters", "fedit"}};
  EXPECT_THAT(Check(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("adapter_error")));
  spec.strategy.params["adapter_error"] = "skip";
  EXPECT_THAT(Check(spec), IsOk());
  for (const char* mode : {"ffa", "rolora", "fedsb"}) {
    spec.strategy.params = {{"adapters", mode}};
    EXPECT_THAT(Check(spec), IsOk()) << mode;
  }
}

absl::Status CheckTriplets(const std::string& strategy, ParamMap params, AdaLoraSpec own = {}, const std::vector<Shape>& shapes = kTriplets, const std::string& codec = "f32") {
  JobSpec spec = AdapterJob(strategy, std::move(params));
  spec.codec = codec;
  spec.model.adapter.kind = "adalora";
  spec.model.adapter.adalora = own;
  spec.stop.versions = 10;
  const auto made = StrategyOf(spec);
  if (!made.ok()) return made.status();
  return CheckJob(spec, **made, ModelLayout((*made)->adapters(), shapes, DType::kF32));
}

TEST(AdaptersTest, TripletsGoWithFewModesAndTheRefusalSaysWhy) {
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedex"}}), IsOk());
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedit"}}), IsOk());
  const auto refused = [](const char* words) { return StatusIs(StatusCode::kInvalidArgument, HasSubstr(words)); };
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "flora"}}), refused("flora begins each version with fresh factors"));
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "flexlora"}}), refused("flexlora makes new components of the clients' sum"));
  for (const char* mode : {"ffa", "rolora", "fedsb"}) EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", mode}}), refused("freezes factors, and adalora trains all three")) << mode;
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedit"}, {"adapter_error", "skip"}}), refused("nothing allots ranks then"));
  EXPECT_THAT(CheckTriplets("fedadam", {{"adapters", "fedit"}}), refused("with model.adapter.kind adalora expected fedex, or fedit with fedavg"));
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedex"}}, {.init_versions = 6, .final_versions = 4}), refused("leave no version to take ranks away in"));
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedex"}}, {.init_versions = 5, .final_versions = 4}), IsOk());
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedex"}}, {}, kTriplets, "int8"), refused("adalora keeps every update whole until the commit, which does not go with codec int8"));
  EXPECT_THAT(CheckTriplets("fedavg", {{"adapters", "fedex"}}, {}, kTwoLayers), refused("layer 'fc1' has no lora_E; expected kind lora, got 'adalora'"));
  const JobSpec lora = AdapterJob("fedavg", {{"adapters", "fedex"}});
  EXPECT_THAT(CheckJob(lora, **StrategyOf(lora), ModelLayout(AdapterMode::kFedEx, kTriplets, DType::kF32)), refused("has triplets, which alone have a lora_E; expected kind adalora, got 'lora'"));
}

TEST(AdaptersTest, PrivacyGoesWithMeansAndNotWithWholeUpdates) {
  const auto made = [](const char* mode, const char* error) {
    JobSpec spec = AdapterJob("fedavg", {{"adapters", mode}, {"weighting", "uniform"}, {"adapter_error", error}});
    spec.privacy.enabled = true;
    spec.privacy.clip = 1;
    spec.privacy.noise_multiplier = 1;
    spec.privacy.delta = 1e-5;
    const auto strategy = MakeStrategy(spec.strategy, spec.local);
    EXPECT_THAT(strategy, IsOk());
    return JobPrivacy::Create(spec, ModelLayout((*strategy)->adapters(), kTwoLayers, DType::kF32), **strategy).status();
  };
  for (const char* mode : {"ffa", "rolora", "fedsb", "fedit"}) EXPECT_THAT(made(mode, "skip"), IsOk()) << mode;
  for (const char* mode : {"flora", "flexlora", "fedex", "fedit"}) {
    EXPECT_THAT(made(mode, "measure"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("looks at every update by itself"))) << mode;
  }
}

TEST(AdaptersTest, AModelThatDoesNotFitItsModeIsRefused) {
  const TensorLayout plain = ModelLayout(AdapterMode::kFedIt, kTwoLayers);
  EXPECT_THAT(FindAdapters(AdapterMode::kFedEx, plain), StatusIs(StatusCode::kInvalidArgument, HasSubstr("needs the tensor")));
  EXPECT_THAT(FindAdapters(AdapterMode::kFfa, plain), StatusIs(StatusCode::kInvalidArgument, HasSubstr("as a buffer")));
  EXPECT_THAT(FindAdapters(AdapterMode::kFedIt, VectorLayout(4)), StatusIs(StatusCode::kInvalidArgument, HasSubstr("expected one of an adapter")));
  EXPECT_THAT(FindAdapters(AdapterMode::kFedIt, LayoutOf({{.name = "base_model.model.w.lora_A.weight", .shape = {2, 3}}})),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("expected lora_A [r, in] and lora_B [out, r], got [2, 3] and []")));
  EXPECT_THAT(FindAdapters(AdapterMode::kFedIt, LayoutOf({{.name = "base_model.model.w.lora_A.weight", .shape = {2, 3}}, {.name = "base_model.model.w.lora_A", .shape = {2, 3}}})),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("layer 'w' has this one already")));
  EXPECT_THAT(FindAdapters(AdapterMode::kFedIt, LayoutOf({{.name = "base_model.model.w.lora_A", .shape = {2, 3}}, {.name = "base_model.model.w.lora_B", .shape = {3, 2}},
                                                          {.name = "base_model.model.w.lora_E", .shape = {2, 1}}})),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("needs the tensor 'base_model.model.w.lora_importance'")));
}

TEST(LinalgTest, NormAndApproximationAgreeWithTheDenseProduct) {
  for (const auto& [out, inner, in] : std::vector<std::tuple<size_t, size_t, size_t>>{{9, 4, 7}, {3, 12, 5}, {1, 1, 1}, {6, 2, 40}}) {
    LowRank product{Matrix{out, inner, RandomValues(out * inner, 3)}, Matrix{inner, in, RandomValues(inner * in, 4)}};
    const Dense dense = Product(product.b.values, product.a.values, out, inner, in);
    EXPECT_NEAR(ProductNorm(product), Norm(dense), 1e-13 * Norm(dense));
    const size_t full = std::min({out, inner, in});
    Dense rest = dense;
    AddProduct(Truncated(product, full), -1, rest);
    EXPECT_LE(Norm(rest), 1e-13 * Norm(dense));
    // More components than there are: the others are 0.
    const LowRank more = Truncated(product, full + 2);
    EXPECT_EQ(more.b.cols, full + 2);
    for (size_t j = 0; j < in; ++j) EXPECT_EQ(more.a(full + 1, j), 0);
  }
  const LowRank nothing{Matrix::Zero(4, 2), Matrix::Zero(2, 3)};
  EXPECT_EQ(ProductNorm(nothing), 0);
  EXPECT_EQ(Norm(Truncated(nothing, 2).b.values), 0);
}

}  // namespace
}  // namespace tributary::aggregator
