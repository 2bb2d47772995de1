// Adapters of zoo models: they begin as nothing, are what their formula says, and alone train and travel.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "common/file.h"
#include "tests/unit/client_torch/adapter_fixtures.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(LoraTest, AFreshAdapterChangesNoOutput) {
  for (const char* mode : {"fedit", "ffa", "rolora", "flora", "flexlora", "fedex", "fedsb"}) {
    const JobSpec spec = SmallMlp(mode);
    const auto adapted = Made(spec);
    adapted->Load(adapted->Initialise(AdapterSeed(spec.seed)));
    adapted->model().BeginTask();
    TRIB_ASSERT_OK_AND_ASSIGN(const auto plain, TrainableModel::Create(spec.model, spec.dtype, "", at::Device(at::kCPU)));
    plain->Load(plain->Initialise(static_cast<uint64_t>(spec.seed)));
    const at::Tensor x = at::randn({6, 5}, at::kDouble);
    EXPECT_TRUE(at::equal(adapted->model().Forward(x, false), plain->model().Forward(x, false))) << mode;
  }
}

// y = W·x + (α/r)·(B·A + residual)·x, and its gradients by LibTorch of the formula written out.
TEST(LoraTest, OutputsAndGradientsAreThoseOfTheFormula) {
  for (const char* mode : {"fedit", "flora", "fedsb"}) {
    JobSpec spec = AdapterJob("linear", {{"input", "5"}, {"classes", "4"}}, {"fc"}, mode);
    const auto adapted = Made(spec);
    const std::vector<double> values = RandomFloats(adapted->layout().float_count(), 5);
    adapted->Load(Bytes(values));
    adapted->model().BeginTask();
    TRIB_ASSERT_OK_AND_ASSIGN(const auto plain, TrainableModel::Create(spec.model, spec.dtype, "", at::Device(at::kCPU)));
    plain->Load(plain->Initialise(static_cast<uint64_t>(spec.seed)));
    const at::Tensor w = Of(*plain, "fc.weight").detach(), bias = Of(*plain, "fc.bias").detach();
    const std::string prefix = "base_model.model.fc";
    const at::Tensor a = Of(*adapted, prefix + ".lora_A.weight").detach().clone().requires_grad_(true);
    const at::Tensor b = Of(*adapted, prefix + ".lora_B.weight").detach().clone().requires_grad_(true);
    at::Tensor whole = b.matmul(a), r;
    if (std::string(mode) == "fedsb") {
      r = Of(*adapted, prefix + ".lora_R.weight").detach().clone().requires_grad_(true);
      whole = b.matmul(r).matmul(a);
    }
    if (std::string(mode) == "flora") whole = whole + Of(*adapted, prefix + ".base_layer.residual").detach();
    const at::Tensor x = at::randn({7, 5}, at::kDouble), direction = at::randn({7, 4}, at::kDouble);
    const at::Tensor expected = x.matmul((w + 2 * whole).t()) + bias;
    const at::Tensor got = adapted->model().Forward(x, true);
    EXPECT_LE((got - expected).abs().max().item<double>(), 1e-13) << mode;
    (expected * direction).sum().backward();
    adapted->gradient().zero_();
    (got * direction).sum().backward();
    const auto expect_gradient = [&](const std::string& name, const at::Tensor& reference) {
      EXPECT_LE((Of(*adapted, prefix + name).grad() - reference.grad()).abs().max().item<double>(), 1e-12) << mode << name;
    };
    if (r.defined()) {
      expect_gradient(".lora_R.weight", r);
    } else {
      expect_gradient(".lora_A.weight", a);
      expect_gradient(".lora_B.weight", b);
    }
  }
}

TEST(LoraTest, NamesOutputsAndGradientsAreThoseOfPeft) {
  const nlohmann::json golden = ReadGolden("peft_lora.json");
  for (const bool rank_stabilised : {false, true}) {
    const nlohmann::json& expected = golden.at(rank_stabilised ? "rank_stabilised" : "plain");
    JobSpec spec = SmallMlp();
    spec.model.adapter.rank_stabilised = rank_stabilised;
    const auto model = OnGoldenBase(spec);
    std::map<std::string, std::vector<int64_t>> names;
    for (const PlacedTensor& tensor : model->layout().tensors()) names[tensor.spec.name] = tensor.spec.shape;
    EXPECT_EQ(nlohmann::json(names), expected.at("saved"));

    const at::Tensor batch = GoldenBatch();
    model->Load(model->Initialise(1));
    EXPECT_LE(Difference(model->model().Forward(batch, false), expected.at("fresh")), 1e-14);
    std::vector<double> factors;
    for (size_t k = 4; k < 8; ++k) {
      const std::vector<double> values = Sines(model->layout().tensors()[k - 4].elements, k);
      factors.insert(factors.end(), values.begin(), values.end());
    }
    model->Load(Bytes(factors));
    const at::Tensor output = model->model().Forward(batch, true);
    EXPECT_LE(Difference(output, expected.at("output")), 1e-14);
    const at::Tensor loss = GoldenLoss(output);
    EXPECT_NEAR(loss.item<double>(), expected.at("loss").get<double>(), 1e-14);
    model->gradient().zero_();
    loss.backward();
    for (const auto& [name, rows] : expected.at("gradients").items()) EXPECT_LE(Difference(Of(*model, name).grad(), rows), 1e-14) << name;
  }
}

TEST(LoraTest, EveryLinearLayerOfTheZooTakesAnAdapter) {
  const std::vector<std::pair<JobSpec, std::vector<std::string>>> cases = {
      {AdapterJob("linear", {{"input", "5"}, {"classes", "3"}}, {}), {"fc"}},
      {AdapterJob("mlp", {{"input", "5"}, {"classes", "3"}, {"hidden", "4x4"}}, {}), {"fc1", "fc2", "fc3"}},
      {AdapterJob("cnn", {{"input", "1x8x8"}, {"classes", "3"}, {"width", "2"}, {"hidden", "4"}}, {}), {"fc1", "fc2"}},
      {SmallTransformer({}), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "layers.1.self_attn.q_proj"}},
      {AdapterJob("moe_transformer", {{"input", "12"}, {"vocabulary", "8"}, {"layers", "1"}, {"width", "8"}, {"heads", "2"}, {"experts", "2"}, {"expert_hidden", "4"}}, {}),
       {"q_proj", "o_proj", "lm_head"}},
  };
  for (const auto& [job, layers] : cases) {
    for (const std::string& layer : layers) {
      JobSpec spec = job;
      spec.model.adapter.targets = {layer};
      const auto model = Made(spec);
      std::vector<int64_t> shape = model->model().input_shape();
      shape.insert(shape.begin(), 3);
      const at::Tensor x = model->model().next_token() ? at::randint(8, shape, at::kDouble) : at::randn(shape, at::kDouble);
      model->Load(model->Initialise(1));
      model->model().BeginTask();
      const at::Tensor before = model->model().Forward(x, false);
      const std::vector<double> values = RandomFloats(model->layout().float_count(), 9);
      model->Load(Bytes(values));
      EXPECT_GT((model->model().Forward(x, false) - before).abs().max().item<double>(), 1e-6) << spec.model.zoo << " " << layer;
    }
  }
}

TEST(LoraTest, DropoutActsInTrainingAlone) {
  JobSpec spec = AdapterJob("linear", {{"input", "50"}, {"classes", "3"}}, {"fc"});
  spec.model.adapter.dropout = 0.5;
  const auto model = Made(spec);
  const std::vector<double> values = RandomFloats(model->layout().float_count(), 5);
  model->Load(Bytes(values));
  const at::Tensor x = at::randn({4, 50}, at::kDouble);
  EXPECT_TRUE(at::equal(model->model().Forward(x, false), model->model().Forward(x, false)));
  EXPECT_FALSE(at::equal(model->model().Forward(x, true), model->model().Forward(x, true)));
}

TEST(LoraTest, TheBaseStaysAsItWasWhateverIsTrained) {
  const JobSpec spec = SmallMlp("fedex");
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  const Dataset data = Classes(24, {5}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult before, learner->Evaluate(RequestFor(spec, model), &data));
  const JobSpec plain = Plain(spec);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel whole, InitialModel(plain));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult same, CpuLearner()->Evaluate(RequestFor(plain, whole), &data));
  EXPECT_EQ(before.loss, same.loss);
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, learner->Train(RequestFor(spec, model), &data));
  EXPECT_EQ(trained.update.size(), model.layout.trainable_count() * sizeof(double));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult after, learner->Evaluate(RequestFor(spec, model), &data));
  EXPECT_EQ(after.loss, before.loss);
  // A residual is part of the model: of the version evaluated, and not of the next one.
  FlatModel moved = model;
  const PlacedTensor* residual = model.layout.Find("base_model.model.fc1.base_layer.residual");
  ASSERT_NE(residual, nullptr);
  const double value = 0.5;
  std::memcpy(moved.bytes.data() + residual->offset_bytes, &value, sizeof(value));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult other, learner->Evaluate(RequestFor(spec, moved), &data));
  EXPECT_NE(other.loss, before.loss);
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult back, learner->Evaluate(RequestFor(spec, model), &data));
  EXPECT_EQ(back.loss, before.loss);
}

TEST(LoraTest, TrainingLowersTheLossInEveryMode) {
  const Dataset data = Classes(24, {5}, 3);
  for (const char* mode : {"fedit", "ffa", "flora", "flexlora", "fedex", "fedsb"}) {
    JobSpec spec = SmallMlp(mode);
    spec.local.steps = 60;
    TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
    const auto learner = CpuLearner();
    TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult before, learner->Evaluate(RequestFor(spec, model), &data));
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, learner->Train(RequestFor(spec, model), &data));
    TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult after, learner->Evaluate(RequestFor(spec, WithTravelled(model, trained.update)), &data));
    EXPECT_LT(after.loss, 0.97 * before.loss) << mode;
  }
}

TEST(LoraTest, RoLoraSendsTheHalfWhoseTurnItIs) {
  const JobSpec spec = SmallMlp("rolora");
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  const std::vector<double> values = RandomFloats(model.layout.float_count(), 4);
  std::memcpy(model.bytes.data(), values.data(), model.bytes.size());
  const Dataset data = Classes(24, {5}, 3);
  TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout update_layout, AdapterUpdateLayout(AdapterMode::kRoLora, model.layout));
  for (const uint64_t version : {0, 1}) {
    TrainRequest request = RequestFor(spec, model);
    request.version = version;
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, CpuLearner()->Train(request, &data));
    EXPECT_EQ(trained.update.size(), update_layout.total_bytes());
    EXPECT_EQ(trained.scalars.at("phase"), version == 0 ? 1 : 0);
  }
}

TEST(LoraTest, AClientOfLowerRankTrainsTheFirstComponentsAlone) {
  JobSpec spec = SmallMlp("flexlora");
  spec.model.adapter.rank = 4;
  spec.model.adapter.client_ranks = {4, 2};
  spec.local.momentum = 0.5;
  spec.local.weight_decay = 0.01;
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  const std::vector<double> values = RandomFloats(model.layout.float_count(), 4);
  std::memcpy(model.bytes.data(), values.data(), model.bytes.size());
  const Dataset data = Classes(24, {5}, 3);
  TrainRequest request = RequestFor(spec, model);
  request.shard = 1;
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, CpuLearner()->Train(request, &data));
  std::vector<double> after = Floats<double>(trained.update, values.size());
  for (size_t i = 0; i < after.size(); ++i) after[i] += values[i];
  TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<AdapterPair> pairs, FindAdapters(AdapterMode::kFlexLora, model.layout));
  for (const AdapterPair& pair : pairs) {
    for (size_t l = 0; l < pair.rank; ++l) {
      for (size_t j = 0; j < pair.in; ++j) EXPECT_EQ(std::abs(after[pair.a + l * pair.in + j]) > 1e-12, l < 2);
      for (size_t i = 0; i < pair.out; ++i) EXPECT_EQ(std::abs(after[pair.b + i * pair.rank + l]) > 1e-12, l < 2);
    }
  }
}

TEST(LoraTest, TheBaseComesFromAFileOrTheSeed) {
  JobSpec spec = SmallMlp();
  JobSpec other = Plain(spec);
  other.seed = 77;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel base, InitialModel(other));
  const std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("lora-base-{}.safetensors", getpid());
  ASSERT_THAT(WriteSafetensors(path, base.layout, base.bytes), IsOk());
  const Dataset data = Classes(24, {5}, 3);
  spec.model.base = path.string();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  TrainRequest request = RequestFor(spec, model);
  const std::string artifact = path.string();
  request.artifact_path = artifact;
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult adapted, CpuLearner()->Evaluate(request, &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult whole, CpuLearner()->Evaluate(RequestFor(other, base), &data));
  EXPECT_EQ(adapted.loss, whole.loss);
  std::filesystem::remove(path);
  EXPECT_FALSE(InitialModel(spec).ok());
}

TEST(LoraTest, AJobGoesOnFromAFileOfAdapters) {
  const JobSpec plain = SmallMlp();
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel trained, InitialModel(plain));
  const std::vector<double> values = RandomFloats(trained.layout.float_count(), 4);
  std::memcpy(trained.bytes.data(), values.data(), trained.bytes.size());
  const std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("lora-init-{}.safetensors", getpid());
  ASSERT_THAT(WriteSafetensors(path, trained.layout, trained.bytes), IsOk());
  JobSpec spec = SmallMlp("fedex");
  spec.model.init = path.string();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel next, InitialModel(spec));
  EXPECT_EQ(Floats<double>(next.bytes, values.size()), values);
  const std::vector<double> all = Floats<double>(next.bytes, next.layout.float_count());
  for (size_t i = values.size(); i < all.size(); ++i) EXPECT_EQ(all[i], 0);
  spec.model.adapter.rank = 2;
  EXPECT_THAT(InitialModel(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr(path.string())));
  std::filesystem::remove(path);
}

TEST(LoraTest, WhatCannotBeAdaptedIsRefused) {
  EXPECT_THAT(MakeAdapted(AdapterJob("mlp", {}, {"fc9"}), "", at::Device(at::kCPU)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("model 'mlp' has no linear layer 'fc9'; it has: fc1, fc2")));
  EXPECT_THAT(MakeAdapted(AdapterJob("resnet18", {{"input", "3x32x32"}, {"stem", "small"}}, {"fc"}), "", at::Device(at::kCPU)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("buffers that training changes")));
}

}  // namespace
}  // namespace tributary::client
