// The language models: what must hold of any of them, and the mixture-of-experts layer against the same computed directly.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "client/torch/batches.h"
#include "client/torch/decoder.h"
#include "client/torch/moe/moe_layer.h"
#include "client/torch/trainable_model.h"
#include "tests/unit/client_torch/fixtures.h"

namespace tributary {

void PrintTo(const JobSpec& spec, std::ostream* out) { *out << spec.model.zoo; }

namespace client {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

const ParamMap kSmall = {{"input", "16"}, {"vocabulary", "64"}, {"layers", "2"}, {"width", "32"}, {"heads", "4"}};

ParamMap Small(ParamMap more) {
  more.insert(kSmall.begin(), kSmall.end());
  return more;
}

JobSpec SmallJob(const std::string& zoo, ParamMap more = {}) {
  JobSpec spec = ZooJob(zoo, Small(std::move(more)));
  spec.dtype = DType::kF64;
  return spec;
}

JobSpec MoeMlpJob(ParamMap more) {
  for (const auto& [name, value] : ParamMap{{"input", "16"}, {"vocabulary", "64"}, {"embedding", "8"}, {"history", "6"}, {"width", "32"}, {"experts", "4"}, {"expert_hidden", "24"}}) {
    more.emplace(name, value);
  }
  JobSpec spec = ZooJob("moe_mlp", std::move(more));
  spec.dtype = DType::kF64;
  return spec;
}

// The model with its initial values, in double.
std::unique_ptr<TrainableModel> Initialised(const JobSpec& spec) {
  auto model = TrainableModel::Create(spec.model, spec.dtype, "", at::Device(at::kCPU));
  EXPECT_THAT(model, IsOk());
  (*model)->Load((*model)->Initialise(5));
  (*model)->model().BeginTask();
  return *std::move(model);
}

at::Tensor SomeTokens(int64_t sequences, int64_t length) {
  at::Tensor tokens = at::zeros({sequences, length}, at::TensorOptions().dtype(at::kDouble));
  auto* token = tokens.mutable_data_ptr<double>();
  for (int64_t i = 0; i < sequences * length; ++i) token[i] = static_cast<double>((i * i + 7 * i + 3) % 64);
  return tokens;
}

class LanguageModelTest : public ::testing::TestWithParam<JobSpec> {};

TEST_P(LanguageModelTest, APositionSeesNothingThatComesAfterIt) {
  const at::NoGradGuard no_grad;
  const auto model = Initialised(GetParam());
  const at::Tensor tokens = SomeTokens(1, 16);
  const at::Tensor before = model->model().Forward(tokens, false);
  at::Tensor changed = tokens.clone();
  changed[0][9] = 63.0;
  const at::Tensor after = model->model().Forward(changed, false);
  ASSERT_EQ(before.sizes().vec(), (std::vector<int64_t>{1, 16, 64}));
  EXPECT_LT((before - after).slice(1, 0, 9).abs().max().item<double>(), 1e-12);
  EXPECT_GT((before - after).slice(1, 9).abs().max().item<double>(), 1e-6);
  EXPECT_LT((before.slice(1, 0, 5) - model->model().Forward(tokens.slice(1, 0, 5), false)).abs().max().item<double>(), 1e-12) << "shorter sequences too";
}

// Through attention, router, gates and experts: the derivative along a direction, against finite differences in double.
TEST_P(LanguageModelTest, ItsGradientIsThatOfFiniteDifferences) {
  const auto model = Initialised(GetParam());
  const Dataset data = Tokens(3, 16);
  ExampleStore store(at::kCPU);
  TRIB_ASSERT_OK_AND_ASSIGN(const Batches batches, Batches::Create(&data, *model, store));
  const std::vector<uint32_t> all = {0, 1, 2};
  const auto loss = [&] {
    const Batch batch = batches.At(all);
    const at::Tensor value = *batches.Loss(model->model().Forward(batch.x, true), batch);
    const at::Tensor auxiliary = model->model().AuxiliaryLoss();
    return auxiliary.defined() ? value + auxiliary : value;
  };
  model->gradient().zero_();
  loss().backward();
  const at::NoGradGuard no_grad;
  at::manual_seed(3);
  const at::Tensor direction = at::randn(model->gradient().sizes(), model->gradient().options());
  const double step = 1e-6;
  model->trainable().add_(direction, step);
  const double above = loss().item<double>();
  model->trainable().sub_(direction, 2 * step);
  const double below = loss().item<double>();
  const double slope = model->gradient().dot(direction).item<double>();
  EXPECT_GT(std::abs(slope), 1e-3);
  EXPECT_NEAR((above - below) / (2 * step) / slope, 1, 1e-4);
}

TEST_P(LanguageModelTest, LearnsWhatComesNext) {
  JobSpec spec = GetParam();
  spec.local.steps = 60;
  spec.local.batch = 6;
  spec.local.lr = 0.1;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Tokens(6, 16);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult before, learner->Evaluate(RequestFor(spec, model), &data));
  EXPECT_NEAR(before.loss, std::log(64), 0.15) << "an untrained model knows nothing";
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult after, learner->Evaluate(RequestFor(spec, Applied<double>(model, result.update)), &data));
  EXPECT_LT(after.loss, 1.9);
  EXPECT_GT(after.accuracy, 0.3);
  EXPECT_LE(after.accuracy, 1.0);
}

INSTANTIATE_TEST_SUITE_P(Zoo, LanguageModelTest,
                         ::testing::Values(SmallJob("transformer", {{"hidden", "48"}}),
                                           SmallJob("moe_transformer", {{"experts", "4"}, {"expert_hidden", "24"}, {"router", "lbl"}, {"router.weight", "0.05"}}),
                                           SmallJob("moe_transformer", {{"experts", "4"}, {"expert_hidden", "24"}, {"score", "sigmoid"}, {"gate", "sqrt"}, {"router", "alf"}}),
                                           MoeMlpJob({{"router", "lbl"}, {"router.weight", "0.05"}})),
                         [](const auto& info) { return info.param.model.zoo + std::to_string(info.index); });

struct LayerRig {
  int64_t width = 12, hidden = 20, experts = 6;
  at::TensorOptions options = at::TensorOptions().dtype(at::kDouble);
  at::Tensor gate = at::randn({experts, width}, options);
  std::vector<Expert> all;
  at::Tensor x = at::randn({40, width}, options);

  LayerRig() {
    for (int64_t e = 0; e < experts; ++e) all.push_back({at::randn({hidden, width}, options), at::randn({width, hidden}, options), at::randn({hidden, width}, options)});
  }
  MoeLayer Layer(MoeOptions layer_options, const std::string& router, size_t top_k, const ParamMap& params = {}) {
    MoeLayer layer(layer_options, gate, all, {});
    layer.Begin(*MakeRouter(router, params, {.experts = static_cast<size_t>(experts), .top_k = top_k}));
    return layer;
  }
  // Σ_j weight[n, j]·F_j(x_n), every expert on every token.
  at::Tensor Mixture(const at::Tensor& weight) const {
    at::Tensor y = at::zeros_like(x);
    for (int64_t e = 0; e < experts; ++e) {
      const auto at_e = static_cast<size_t>(e);
      y = y + SwiGlu(x, all[at_e].w1, all[at_e].w3, all[at_e].w2) * weight.select(1, e).unsqueeze(1);
    }
    return y;
  }
};

TEST(MoeLayerTest, WithAllExpertsChosenItIsTheDenseMixture) {
  at::manual_seed(1);
  LayerRig rig;
  const at::Tensor scores = at::softmax(at::linear(rig.x, rig.gate), -1);
  MoeLayer linear = rig.Layer({}, "none", 6);
  EXPECT_LT((linear.Forward(rig.x, 40, true) - rig.Mixture(scores)).abs().max().item<double>(), 1e-11);
  MoeLayer root = rig.Layer({.gate = GateShape::kSqrt}, "none", 6);
  EXPECT_LT((root.Forward(rig.x, 40, true) - rig.Mixture(scores.sqrt())).abs().max().item<double>(), 1e-11);
  EXPECT_FALSE(linear.auxiliary_loss().defined());
}

// Of every router: the layer's output is the mixture by the gates of moe_math.h, which is tested against published code.
TEST(MoeLayerTest, ItsGatesAreThoseOfTheReferenceForEveryRouter) {
  at::manual_seed(2);
  LayerRig rig;
  const at::Tensor logits = at::linear(rig.x, rig.gate);
  const at::Tensor plain = logits.to(at::kFloat).contiguous();
  const std::span<const float> values(plain.const_data_ptr<float>(), static_cast<size_t>(plain.numel()));
  const std::vector<float> scores = Scores(values, 6, Score::kSoftmax);
  for (const RouterEntry& entry : Routers()) {
    MoeLayer layer = rig.Layer({}, entry.name, 2);
    const auto router = *MakeRouter(entry.name, {}, {.experts = 6, .top_k = 2});
    const Selection selection = router->Select(values, scores, {.sequence = 20});
    const std::vector<float> gates = Gates(selection, values, scores, router->gate_rule(), GateShape::kLinear);
    at::Tensor dense = at::zeros({40, 6}, rig.options);
    auto* weight = dense.mutable_data_ptr<double>();
    for (size_t j = 0; j < 6; ++j) {
      for (int64_t pair = selection.offsets[j]; pair < selection.offsets[j + 1]; ++pair) {
        weight[static_cast<size_t>(selection.token[static_cast<size_t>(pair)]) * 6 + j] = static_cast<double>(gates[static_cast<size_t>(pair)]);
      }
    }
    const at::Tensor expected = rig.Mixture(dense);
    EXPECT_LT((layer.Forward(rig.x, 20, true) - expected).abs().max().item<double>() / expected.abs().max().item<double>(), 1e-5) << entry.name;
    if (std::string(entry.name) == "lbl" || std::string(entry.name) == "global_lbl") {
      const std::vector<int64_t> counts = selection.Counts();
      EXPECT_NEAR(layer.auxiliary_loss().item<double>(), BalanceLoss(scores, router->LossWeights(counts)), 1e-7) << entry.name;
    }
  }
  MoeLayer z = rig.Layer({.z_loss = 0.5}, "none", 2);
  z.Forward(rig.x, 40, true);
  EXPECT_NEAR(z.auxiliary_loss().item<double>(), 0.5 * ZLoss(values, 6), 1e-5);
}

// LibTorch's grouped product, where this build of it has one for the processor: outputs and all gradients are the loop's. Weights both in one buffer, as
// in a model, and each by itself.
TEST(MoeLayerTest, OneGroupedProductIsTheLoopOverExperts) {
  for (const bool one_buffer : {true, false}) {
    at::manual_seed(5);
    LayerRig rig;
    rig.options = at::TensorOptions().dtype(at::kFloat);
    rig.gate = rig.gate.to(at::kFloat);
    rig.x = rig.x.to(at::kFloat).requires_grad_(true);
    const int64_t each = rig.hidden * rig.width;
    const at::Tensor flat = at::randn({rig.experts * 3 * each}, rig.options), gradient = at::zeros_like(flat);
    for (int64_t e = 0; e < rig.experts; ++e) {
      Expert& expert = rig.all[static_cast<size_t>(e)];
      const auto place = [&](int64_t m, int64_t out, int64_t in) {
        const at::Tensor values = flat.narrow(0, (3 * e + m) * each, each).view({out, in}).detach();
        at::Tensor leaf = one_buffer ? values : values.clone();
        leaf.requires_grad_(true);
        leaf.mutable_grad() = one_buffer ? gradient.narrow(0, (3 * e + m) * each, each).view({out, in}) : at::zeros({out, in}, rig.options);
        return leaf;
      };
      expert = {.w1 = place(0, rig.hidden, rig.width), .w2 = place(1, rig.width, rig.hidden), .w3 = place(2, rig.hidden, rig.width)};
    }
    const auto run = [&](GemmKind gemm) {
      for (Expert& expert : rig.all) {
        for (const at::Tensor& w : {expert.w1, expert.w2, expert.w3}) w.mutable_grad().zero_();
      }
      rig.x.mutable_grad() = at::Tensor();
      MoeLayer layer = rig.Layer({.gemm = gemm}, "none", 2);
      const at::Tensor y = layer.Forward(rig.x, 40, true);
      y.square().sum().backward();
      std::vector<at::Tensor> results = {y.detach(), rig.x.grad().clone()};
      for (const Expert& expert : rig.all) {
        for (const at::Tensor& w : {expert.w1, expert.w2, expert.w3}) results.push_back(w.grad().clone());
      }
      return results;
    };
    const std::vector<at::Tensor> expected = run(GemmKind::kLoop);
    std::vector<at::Tensor> got;
    try {
      got = run(GemmKind::kGrouped);
    } catch (const c10::Error& error) {
      GTEST_SKIP() << "no grouped product here: " << error.what_without_backtrace();
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LT((got[i] - expected[i]).abs().max().item<double>(), 1e-4 * (1 + expected[i].abs().max().item<double>())) << (one_buffer ? "one buffer, " : "") << i;
    }
  }
}

// moe_lora.md §3.1: with an even load of all clients the loss over them is α whatever a router does, while its own batch's loss pulls at one that has
// specialised.
TEST(MoeLayerTest, TheGlobalBalanceLossLeavesASpecialisedRouterAloneAndTheLocalOneDoesNot) {
  at::manual_seed(4);
  LayerRig rig;
  rig.x = rig.x.abs();
  {
    const at::NoGradGuard no_grad;
    rig.gate.slice(0, 0, 2).add_(0.5);  // two experts take most of this client's tokens
  }
  rig.gate.requires_grad_(true);
  const auto pull = [&](const std::string& router, bool evenly_loaded) {
    MoeLayer layer = rig.Layer({}, router, 2, router == "lbl" ? ParamMap{{"weight", "1"}} : ParamMap{{"weight", "1"}, {"local_fraction", "0"}});
    if (evenly_loaded) layer.router().SetGlobalLoad({.share = std::vector<double>(6, 1.0 / 6), .tokens = 1e15});
    layer.Forward(rig.x, 40, true);
    rig.gate.mutable_grad() = at::Tensor();
    layer.auxiliary_loss().backward();
    return rig.gate.grad().norm().item<double>();
  };
  EXPECT_GT(pull("lbl", false), 1e-3);
  EXPECT_GT(pull("global_lbl", false), 1e-3) << "before a load of all has come";
  EXPECT_LT(pull("global_lbl", true), 1e-7);
}

class ServersBiasTest : public ::testing::TestWithParam<ParamMap> {};

TEST_P(ServersBiasTest, StaysAsItCameAndCountsComeWithTheUpdate) {
  ParamMap params = {{"experts", "4"}, {"expert_hidden", "24"}};
  params.insert(GetParam().begin(), GetParam().end());
  JobSpec spec = SmallJob("moe_transformer", params);
  spec.local.steps = 3;
  spec.local.batch = 6;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const PlacedTensor* bias = model.layout.Find("model.layers.1.block_sparse_moe.gate.e_score_correction_bias");
  ASSERT_NE(bias, nullptr);
  EXPECT_EQ(bias->spec.kind, TensorKind::kServerOwned);
  const Dataset data = Tokens(6, 16);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout travelling, WithGroups(model.layout, {""}));
  EXPECT_EQ(result.update.size(), travelling.total_bytes());
  EXPECT_EQ(travelling.total_bytes(), model.bytes.size() - 2 * 4 * 8) << "two biases of four stay";
  ASSERT_EQ(result.moe.size(), 2u);
  for (const MoeLayerStats& layer : result.moe) {
    EXPECT_EQ(layer.tokens, 3 * 6 * 16) << "three steps of six windows";
    int64_t pairs = 0;
    double scores = 0;
    for (size_t j = 0; j < 4; ++j) {
      pairs += layer.counts.at(j);
      scores += layer.prob_sum.at(j);
    }
    EXPECT_EQ(pairs, 2 * layer.tokens);
    EXPECT_NEAR(scores, static_cast<double>(layer.tokens), 1e-3) << "softmax";
    EXPECT_GT(layer.square_sum, scores * scores / 4 / static_cast<double>(layer.tokens));
    const bool margins = params.contains("router.scope");
    ASSERT_EQ(layer.margins.size(), margins ? 4u * 64 : 0u);
    for (size_t j = 0; margins && j < 4; ++j) {
      const auto row = layer.margins.begin() + static_cast<std::ptrdiff_t>(j * 64);
      EXPECT_EQ(std::accumulate(row, row + 64, int64_t{0}), layer.tokens);
      // Whoever is chosen has a margin above 0; those below 2^-15 are in one bin with 0 itself.
      EXPECT_LE(std::accumulate(row + 33, row + 64, int64_t{0}), layer.counts[j]);
      EXPECT_GE(std::accumulate(row + 32, row + 64, int64_t{0}), layer.counts[j]);
    }
  }
  // A bias that one client alone would have moved: routing follows it.
  FlatModel biased = model;
  for (size_t j = 0; j < 4; ++j) {
    const double b = j == 3 ? 2.0 : 0.0;
    std::memcpy(biased.bytes.data() + bias->offset_bytes + j * 8, &b, 8);
  }
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult pushed, learner->Train(RequestFor(spec, biased), &data));
  EXPECT_EQ(pushed.moe[1].counts[3], pushed.moe[1].tokens) << "every token has the expert among its two";
  for (const char* metric : {"moe_avg_max_vio", "moe_sup_max_vio", "moe_effective_experts"}) EXPECT_TRUE(result.metrics.contains(metric)) << metric;
  // Equal tasks give equal updates: nothing is left in the learner from the task before.
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult again, learner->Train(RequestFor(spec, model), &data));
  EXPECT_EQ(again.update, result.update);
  EXPECT_EQ(again.moe, result.moe);
}

INSTANTIATE_TEST_SUITE_P(Routers, ServersBiasTest,
                         ::testing::Values(ParamMap{{"router.name", "alf"}, {"router.step", "0.1"}, {"router.local_steps", "true"}},
                                           ParamMap{{"router.name", "quantile"}, {"router.scope", "global"}, {"router.bins", "64"}}),
                         [](const auto& info) { return info.param.at("router.name"); });

TEST(MoeTransformerTest, TheLoadOfAllClientsReachesTheLossAndOneOfOtherLayersIsRefused) {
  JobSpec spec = SmallJob("moe_transformer", {{"experts", "4"}, {"expert_hidden", "24"}, {"aux.lbl", "5"}, {"aux.lbl_scope", "global"}, {"aux.lbl_local_fraction", "0"}});
  spec.local.steps = 2;
  spec.local.batch = 6;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Tokens(6, 16);
  const auto learner = CpuLearner();
  TrainRequest request = RequestFor(spec, model);
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult alone, learner->Train(request, &data));
  GlobalMoe load{.step = 1, .layers = std::vector<MoeLayerLoad>(2, {.share = {1, 0, 0, 0}, .tokens = 1e9})};
  request.moe = &load;
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult told, learner->Train(request, &data));
  EXPECT_NE(told.update, alone.update);
  load.layers[1].share.pop_back();
  EXPECT_THAT(learner->Train(request, &data), StatusIs(StatusCode::kInvalidArgument, HasSubstr("layer 1: expected the load of 4 experts, got 3")));
  load.layers.pop_back();
  EXPECT_THAT(learner->Train(request, &data), StatusIs(StatusCode::kInvalidArgument, HasSubstr("expected the load of 2 layers, got 1")));
}

// transformers' Llama and Mixtral from the same weights and tokens, six steps of plain SGD (tests/golden/transformer_losses.py has the formula).
// In double, but transformers takes norms, rotary angles and Mixtral's router in single precision whatever the model's: hence the tolerance.
TEST(LanguageModelGoldenTest, LosesWhatTransformersLosesStepByStep) {
  const nlohmann::json golden = nlohmann::json::parse(std::ifstream(TRIB_GOLDEN_DIR "/transformer_losses.json"));
  for (const std::string zoo : {"transformer", "moe_transformer"}) {
    JobSpec spec = SmallJob(zoo, zoo == "transformer" ? ParamMap{{"hidden", "48"}} : ParamMap{{"experts", "4"}, {"expert_hidden", "24"}, {"aux.z", "0"}});
    TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
    std::vector<std::string> names;
    for (const PlacedTensor& tensor : model.layout.tensors()) names.push_back(tensor.spec.name);
    std::sort(names.begin(), names.end());
    for (size_t k = 0; k < names.size(); ++k) {
      const PlacedTensor* tensor = model.layout.Find(names[k]);
      for (size_t i = 0; i < tensor->elements; ++i) {
        const double wave = 0.08 * std::sin(0.37 * static_cast<double>(i) + static_cast<double>(k));
        const double value = names[k].find("norm") != std::string::npos ? 1 + wave : wave;
        std::memcpy(model.bytes.data() + tensor->offset_bytes + i * sizeof(double), &value, sizeof(value));
      }
    }
    auto all = std::make_shared<Examples>();
    all->example_shape = {16};
    all->labels.assign(3, 0);
    for (size_t s = 0; s < 3; ++s) {
      for (size_t i = 0; i < 16; ++i) all->x.push_back(static_cast<float>((i * i + 7 * i + 13 * s) % 64));
    }
    Dataset data;
    data.all = all;
    data.indices = {0, 1, 2};
    spec.local.steps = 1;
    spec.local.batch = 3;
    spec.local.lr = golden["rate"];
    const auto learner = CpuLearner();
    size_t step = 0;
    for (const auto& expected : golden[zoo]) {
      TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model), &data));
      EXPECT_NEAR(result.metrics.at("train_loss"), expected.get<double>(), 1e-5) << zoo << ", step " << ++step;
      model = Applied<double>(model, result.update);
    }
    EXPECT_EQ(golden[zoo].size(), 6u);
  }
}

TEST(LanguageModelErrorsTest, NameWhatIsWrong) {
  EXPECT_THAT(InitialModel(SmallJob("transformer", {{"hidden", "0"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("'hidden'")));
  ParamMap uneven = kSmall;
  uneven["width"] = "36";
  EXPECT_THAT(InitialModel(ZooJob("transformer", uneven)), StatusIs(StatusCode::kInvalidArgument, HasSubstr("multiple of twice the 4 heads")));
  EXPECT_THAT(InitialModel(SmallJob("moe_transformer", {{"router", "expert_choice"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("looks ahead")));
  EXPECT_THAT(InitialModel(SmallJob("moe_transformer", {{"router", "bpi"}})), StatusIs(StatusCode::kNotFound, HasSubstr("did you mean 'bip'")));
  EXPECT_THAT(InitialModel(SmallJob("moe_transformer", {{"router", "bip"}, {"router.mood", "x"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("did you mean 'mode'")));
  EXPECT_THAT(InitialModel(SmallJob("moe_transformer", {{"router", "lbl"}, {"aux.lbl", "0.1"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("has a balance loss of its own")));
  EXPECT_THAT(InitialModel(ZooJob("moe_mlp", {{"router", "expert_choice"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("looks ahead")));
  EXPECT_THAT(InitialModel(SmallJob("moe_transformer", {{"top_k", "9"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("1 to 8")));
  JobSpec spec = SmallJob("transformer");
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  Dataset data = Tokens(2, 16);
  auto wrong = std::make_shared<Examples>(*data.all);
  wrong->x[20] = 64;
  data.all = wrong;
  EXPECT_THAT(CpuLearner()->Train(RequestFor(spec, model), &data), StatusIs(StatusCode::kInvalidArgument, HasSubstr("example 1 has value 64")));
}

}  // namespace
}  // namespace client
}  // namespace tributary
