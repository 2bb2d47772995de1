// AdaLoRA against the numbers of its authors' code and of PEFT, step by step and over the server's allotments; and what clients send.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include <map>

#include "aggregator/core/rank_allocator.h"
#include "client/torch/lora/adalora.h"
#include "tests/unit/client_torch/adapter_fixtures.h"

namespace tributary::client {
namespace {

using aggregator::BudgetAt;
using aggregator::Largest;
using aggregator::RankBudget;
using aggregator::RankSchedule;
using ::testing::Each;
using ::testing::Gt;
using testing::IsOk;

constexpr char kPrefix[] = "base_model.model.";

JobSpec AdaLoraJob(const std::string& mode = "fedit") {
  JobSpec spec = SmallMlp(mode);
  spec.model.adapter.kind = "adalora";
  spec.model.adapter.adalora = {.target_rank = 1, .init_versions = 2, .final_versions = 3, .interval = 2, .beta1 = 0.85, .beta2 = 0.85, .orthogonal = 0.1};
  spec.stop.versions = 12;
  return spec;
}

// One layer of QingruZhang/AdaLoRA's SVDLinear: frozen weight and bias, triplets beside them.
struct SvdLinear {
  at::Tensor weight, bias;
  Triplets::Tensors tensors;
  std::unique_ptr<Triplets> triplets;
  at::Tensor Forward(const at::Tensor& x, double scale) const { return x.matmul(weight.t()) + bias + triplets->Product(x) * scale; }
  std::vector<at::Tensor> weights() const { return {tensors.a, tensors.e, tensors.b}; }
};

SvdLinear Layer(const nlohmann::json& init, const std::string& name, const AdaLoraSpec& spec) {
  const auto read = [&](const char* what) { return FromNumbers(init.at(name + "." + what).get<std::vector<std::vector<double>>>()); };
  SvdLinear layer{.weight = read("weight"), .bias = FromNumbers({init.at(name + ".bias").get<std::vector<double>>()}), .tensors = {}, .triplets = nullptr};
  layer.tensors = {.a = read("lora_A"), .e = read("lora_E"), .b = read("lora_B"), .importance = {}, .mask = {}};
  layer.tensors.importance = at::zeros({layer.tensors.a.size(0)}, at::kDouble);
  layer.tensors.mask = at::zeros({layer.tensors.a.size(0)}, at::kDouble).fill_(1);
  for (at::Tensor weight : layer.weights()) {
    weight.requires_grad_(true);
    weight.mutable_grad() = at::zeros(weight.sizes(), at::kDouble);
  }
  layer.triplets = std::make_unique<Triplets>(layer.tensors, spec);
  return layer;
}

std::vector<double> Numbers(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().contiguous().view(-1);
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

void ExpectNear(const std::vector<double>& got, const nlohmann::json& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i].get<double>(), tolerance) << what << " " << i;
}

// Loss, penalty, budget, threshold and E of each of the 16 steps: forward, gradients, importance, budget and masks together. Tolerance of the golden file: 1e-9.
TEST(AdaLoraTest, SixteenStepsAreThoseOfTheAuthorsCode) {
  const nlohmann::json golden = ReadGolden("adalora_reference.json"), cfg = golden.at("cfg");
  const AdaLoraSpec spec{.target_rank = cfg.at("target"), .init_versions = cfg.at("init_warmup"), .final_versions = cfg.at("final_warmup"), .interval = cfg.at("interval"),
                         .beta1 = cfg.at("beta"), .beta2 = cfg.at("beta"), .orthogonal = cfg.at("orth")};
  const RankSchedule schedule{.versions = cfg.at("total"), .init_versions = spec.init_versions, .final_versions = spec.final_versions, .interval = spec.interval,
                              .target_rank = spec.target_rank};
  AdapterSpec adapter{.kind = "adalora", .rank = cfg.at("r"), .client_ranks = {}, .alpha = cfg.at("alpha"), .targets = {}, .dropout = 0, .rank_stabilised = false, .adalora = spec};
  std::vector<SvdLinear> layers;
  for (const char* name : {"a", "b"}) layers.push_back(Layer(golden.at("init"), name, spec));
  const at::Tensor x = FromNumbers(golden.at("X").get<std::vector<std::vector<double>>>()), y = FromNumbers(golden.at("Y").get<std::vector<std::vector<double>>>());
  const double rate = golden.at("lr");
  size_t masked = 0;
  for (const nlohmann::json& expected : golden.at("trace")) {
    const auto step = expected.at("step").get<int64_t>();
    const at::Tensor output = layers[1].Forward(at::tanh(layers[0].Forward(x, adapter.Scale())), adapter.Scale());
    const at::Tensor loss = (output - y).square().mean();
    const at::Tensor penalty = (layers[0].triplets->Departure() + layers[1].triplets->Departure()) * (spec.orthogonal / 4);
    EXPECT_NEAR(loss.item<double>(), expected.at("loss").get<double>(), 1e-9) << step;
    EXPECT_NEAR(penalty.item<double>(), expected.at("orth").get<double>(), 1e-9) << step;
    (loss + penalty).backward();
    const at::NoGradGuard no_grad;
    for (const SvdLinear& layer : layers) {
      for (at::Tensor weight : layer.weights()) weight.sub_(weight.grad(), rate);
      if (step < schedule.versions - schedule.final_versions) layer.triplets->Measure();
      for (at::Tensor weight : layer.weights()) weight.mutable_grad().zero_();
    }
    std::vector<double> scores = Numbers(layers[0].tensors.importance);
    const std::vector<double> rest = Numbers(layers[1].tensors.importance);
    scores.insert(scores.end(), rest.begin(), rest.end());
    const RankBudget budget = BudgetAt(schedule, 8, 4, step);
    EXPECT_EQ(budget.triplets, expected.at("budget").get<int64_t>()) << step;
    EXPECT_EQ(budget.allots, !expected.at("threshold").is_null()) << step;
    if (budget.allots) {
      ++masked;
      const std::vector<bool> keep = Largest(scores, static_cast<size_t>(budget.triplets));
      double largest_out = 0;
      for (size_t i = 0; i < keep.size(); ++i) {
        if (keep[i]) continue;
        largest_out = std::max(largest_out, scores[i]);
        layers[i / 4].tensors.e[static_cast<int64_t>(i % 4)].fill_(0);
      }
      EXPECT_NEAR(largest_out, expected.at("threshold").get<double>(), 1e-9 * largest_out) << step;  // they are of order 1e-6
    }
    ExpectNear(Numbers(layers[0].tensors.e), expected.at("Ea"), 1e-9, fmt::format("step {} E of a", step));
    ExpectNear(Numbers(layers[1].tensors.e), expected.at("Eb"), 1e-9, fmt::format("step {} E of b", step));
  }
  EXPECT_EQ(masked, 8u);
}

// The tensors of tests/golden/peft_lora.py in the model's layout.
std::vector<double> GoldenValues(const TensorLayout& layout) {
  std::map<std::string, std::vector<double>> values;
  for (size_t k = 0; k < 2; ++k) {
    const std::string layer = fmt::format("{}fc{}", kPrefix, k + 1);
    values[layer + ".lora_A"] = Sines(layout.Find(layer + ".lora_A")->elements, 4 + 2 * k);
    values[layer + ".lora_B"] = Sines(layout.Find(layer + ".lora_B")->elements, 5 + 2 * k);
    for (size_t i = 0; i < 3; ++i) values[layer + ".lora_E"].push_back(0.3 * std::cos(static_cast<double>(i + k)));
    values[layer + ".lora_importance"] = {0, 0, 0};
    values[layer + ".lora_mask"] = {1, 1, 1};
  }
  std::vector<double> flat;
  for (const PlacedTensor& tensor : layout.tensors()) flat.insert(flat.end(), values.at(tensor.spec.name).begin(), values.at(tensor.spec.name).end());
  return flat;
}

TEST(AdaLoraTest, NamesOutputsAndGradientsAreThoseOfPeft) {
  const nlohmann::json expected = ReadGolden("peft_lora.json").at("adalora");
  const auto model = OnGoldenBase(AdaLoraJob());
  std::map<std::string, std::vector<int64_t>> names;
  for (const PlacedTensor& tensor : model->layout().tensors()) {
    if (NeededInFiles(tensor.spec)) names[tensor.spec.name] = tensor.spec.shape;
  }
  EXPECT_EQ(nlohmann::json(names), expected.at("saved"));
  const at::Tensor batch = GoldenBatch();
  model->Load(model->Initialise(1));
  EXPECT_LE(Difference(model->model().Forward(batch, false), expected.at("fresh")), 1e-14);
  model->Load(Bytes(GoldenValues(model->layout())));
  const at::Tensor output = model->model().Forward(batch, true);
  EXPECT_LE(Difference(output, expected.at("output")), 1e-14);
  const at::Tensor loss = GoldenLoss(output) + model->model().AuxiliaryLoss();
  EXPECT_NEAR(loss.item<double>(), expected.at("loss").get<double>(), 1e-14);
  model->gradient().zero_();
  loss.backward();
  for (const auto& [name, rows] : expected.at("gradients").items()) EXPECT_LE(Difference(Of(*model, name).grad(), rows), 1e-14) << name;
}

// A step stands for a version here, the client's smoothing goes on from one to the next, and the server's code allots: what the federation does with one client,
// but that there each version measures anew.
TEST(AdaLoraTest, TwelveStepsAreThoseOfPeft) {
  const nlohmann::json expected = ReadGolden("peft_lora.json").at("adalora");
  const JobSpec spec = AdaLoraJob();
  const RankSchedule schedule = RankSchedule::Of(spec);
  const auto model = OnGoldenBase(spec);
  TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<AdapterPair> pairs, FindAdapters(AdapterMode::kFedIt, model->layout()));
  model->Load(Bytes(GoldenValues(model->layout())));
  model->model().BeginTask();
  const at::Tensor batch = GoldenBatch();
  for (const nlohmann::json& step : expected.at("trace")) {
    const auto t = step.at("step").get<int64_t>();
    model->gradient().zero_();
    const at::Tensor loss = GoldenLoss(model->model().Forward(batch, true)) + model->model().AuxiliaryLoss();
    EXPECT_NEAR(loss.item<double>(), step.at("loss").get<double>(), 1e-12) << t;
    loss.backward();
    {
      const at::NoGradGuard no_grad;
      model->trainable().sub_(model->gradient(), expected.at("rate").get<double>());
    }
    if (t < schedule.versions - schedule.final_versions) model->model().EndStep();  // PEFT measures no longer from there on
    for (size_t k = 0; k < step.at("scores").size(); ++k) {
      const std::vector<double> scores = Numbers(Of(*model, fmt::format("{}fc{}.lora_importance", kPrefix, k + 1)));
      ExpectNear(scores, step.at("scores")[k], 1e-16, fmt::format("step {} S of fc{}", t, k + 1));  // from 1e-6 to 6e-4
    }
    LargeBytes values = model->Values();
    aggregator::AllotRanks(schedule, pairs, model->layout(), static_cast<uint64_t>(t), values, nullptr);
    model->Load(values);
    for (size_t k = 0; k < 2; ++k) ExpectNear(Numbers(Of(*model, fmt::format("{}fc{}.lora_E", kPrefix, k + 1))), step.at("e")[k], 1e-12, fmt::format("step {}", t));
  }
  EXPECT_EQ(Numbers(Of(*model, "base_model.model.fc1.lora_mask")), (std::vector<double>{1, 0, 0}));
  EXPECT_EQ(Numbers(Of(*model, "base_model.model.fc2.lora_mask")), (std::vector<double>{0, 1, 0}));
}

std::vector<double> Part(const FlatModel& model, std::span<const std::byte> flat, const std::string& name) {
  const PlacedTensor* tensor = model.layout.Find(kPrefix + name);
  return Floats<double>(flat.subspan(tensor->offset_bytes), tensor->elements);
}

TEST(AdaLoraTest, AnUpdateBringsImportanceAndTrainingLowersTheLoss) {
  const Dataset data = Classes(24, {5}, 3);
  for (const char* mode : {"fedit", "fedex"}) {
    JobSpec spec = AdaLoraJob(mode);
    spec.model.adapter.adalora.orthogonal = 1;  // brings A and B up from 0.02, where E hardly has a gradient
    spec.local.steps = 200;
    spec.local.lr = 0.3;
    TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
    const auto learner = CpuLearner();
    TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult before, learner->Evaluate(RequestFor(spec, model), &data));
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, learner->Train(RequestFor(spec, model), &data));
    TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout travelling, AdapterUpdateLayout(AdaptersOf(spec.strategy), model.layout));
    EXPECT_EQ(trained.update.size(), travelling.total_bytes());
    for (const char* layer : {"fc1", "fc2"}) EXPECT_THAT(Part(model, trained.update, std::string(layer) + ".lora_importance"), Each(Gt(0)));
    TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult after, learner->Evaluate(RequestFor(spec, WithTravelled(model, trained.update)), &data));
    EXPECT_LT(after.loss, 0.97 * before.loss) << mode;
  }
}

TEST(AdaLoraTest, ATripletThatIsOutStaysOutAndNothingIsMeasuredAnyMore) {
  JobSpec spec = AdaLoraJob();
  spec.local.momentum = 0.5;
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  std::vector<double> values = RandomFloats(model.layout.float_count(), 4);
  const auto set = [&](const std::string& name, const std::vector<double>& to) {
    std::copy(to.begin(), to.end(), values.begin() + static_cast<ptrdiff_t>(model.layout.Find(kPrefix + name)->offset_bytes / sizeof(double)));
  };
  for (const char* layer : {"fc1", "fc2"}) {
    set(std::string(layer) + ".lora_E", {0.3, 0, 0.2});
    set(std::string(layer) + ".lora_mask", {1, 0, 1});
  }
  std::memcpy(model.bytes.data(), values.data(), model.bytes.size());
  const Dataset data = Classes(24, {5}, 3);
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, CpuLearner()->Train(RequestFor(spec, model), &data));
  for (const char* layer : {"fc1", "fc2"}) {
    const std::vector<double> e = Part(model, trained.update, std::string(layer) + ".lora_E");
    EXPECT_NE(e[0], 0);
    EXPECT_EQ(e[1], 0);
    EXPECT_NE(e[2], 0);
    EXPECT_THAT(Part(model, trained.update, std::string(layer) + ".lora_importance"), Each(0));
  }
}

// Of a triplet that is out nothing changes, not by a bit, and nothing that others learn depends on what it holds.
TEST(AdaLoraTest, WithoutRegrowthATripletThatIsOutIsNoMorePartOfAnything) {
  JobSpec spec = AdaLoraJob("fedex");
  spec.model.adapter.adalora.regrow = false;
  spec.model.adapter.adalora.orthogonal = 1;
  spec.local.momentum = 0.5;
  spec.local.steps = 4;
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<AdapterPair> pairs, FindAdapters(AdapterMode::kFedEx, model.layout));
  const Dataset data = Classes(24, {5}, 3);
  const auto train = [&](double of_dead) {
    std::vector<double> values = RandomFloats(model.layout.float_count(), 4);
    for (const AdapterPair& pair : pairs) {
      for (size_t i = 0; i < pair.in * pair.out; ++i) values[pair.residual + i] = 0;
      for (size_t l = 0; l < 3; ++l) {
        values[pair.mask + l] = l == 1 ? 0 : 1;
        values[pair.importance + l] = 0.25;
      }
      values[pair.e + 1] = 0;
      for (size_t j = 0; j < pair.in; ++j) values[pair.a + pair.in + j] = of_dead;
      for (size_t i = 0; i < pair.out; ++i) values[pair.b + i * 3 + 1] = -of_dead;
    }
    std::memcpy(model.bytes.data(), values.data(), model.bytes.size());
    auto trained = CpuLearner()->Train(RequestFor(spec, model), &data);
    EXPECT_THAT(trained, IsOk());
    return Floats<double>(trained->update, trained->update.size() / sizeof(double));
  };
  const std::vector<double> update = train(0.5);
  EXPECT_EQ(train(3), update);
  for (const AdapterPair& pair : pairs) {
    for (size_t j = 0; j < pair.in; ++j) EXPECT_EQ(update[pair.a + pair.in + j], 0);
    for (size_t i = 0; i < pair.out; ++i) EXPECT_EQ(update[pair.b + i * 3 + 1], 0);
    EXPECT_EQ(update[pair.e + 1], 0);
    EXPECT_EQ(update[pair.importance + 1], 0);
    for (const size_t l : {0, 2}) {
      EXPECT_NE(update[pair.e + l], 0);
      EXPECT_NE(update[pair.importance + l], 0) << "the others are measured on";
      EXPECT_NE(update[pair.a + l * pair.in], 0);
    }
  }
}

// While all are in there is no difference.
TEST(AdaLoraTest, BeforeTheFirstAllotmentTrainingWithoutRegrowthIsTheSame) {
  const Dataset data = Classes(24, {5}, 3);
  std::vector<LargeBytes> updates;
  for (const bool regrow : {true, false}) {
    JobSpec spec = AdaLoraJob();
    spec.model.adapter.adalora.regrow = regrow;
    TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult trained, CpuLearner()->Train(RequestFor(spec, model), &data));
    updates.push_back(trained.update);
  }
  EXPECT_EQ(updates[0], updates[1]);
}

}  // namespace
}  // namespace tributary::client
