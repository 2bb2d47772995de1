#include "client/torch/learner.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "client/core/batch_order.h"
#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::StatusIs;

// Softmax regression by hand in double: w [classes, features], then b [classes], as the layout of `linear` has them.
class ReferenceSteps {
 public:
  ReferenceSteps(std::vector<double> weights, const Dataset& data, int64_t classes)
      : w_(std::move(weights)), moments_(w_.size()), data_(data), classes_(static_cast<size_t>(classes)) {}

  // One step on the examples at `positions`; the mean loss before it.
  double Step(std::span<const uint32_t> positions, const LocalSpec& spec) {
    const size_t features = data_.all->example_elements();
    std::vector<double> gradient(w_.size(), 0);
    double loss = 0;
    for (uint32_t position : positions) {
      const uint32_t row = data_.indices[position];
      const float* x = data_.all->x.data() + row * features;
      std::vector<double> logits(classes_);
      double sum = 0;
      for (size_t c = 0; c < classes_; ++c) {
        logits[c] = w_[classes_ * features + c];
        for (size_t f = 0; f < features; ++f) logits[c] += w_[c * features + f] * static_cast<double>(x[f]);
        sum += std::exp(logits[c]);
      }
      const auto label = static_cast<size_t>(data_.all->labels[row]);
      loss += std::log(sum) - logits[label];
      for (size_t c = 0; c < classes_; ++c) {
        const double error = (std::exp(logits[c]) / sum - (c == label ? 1 : 0)) / static_cast<double>(positions.size());
        for (size_t f = 0; f < features; ++f) gradient[c * features + f] += error * static_cast<double>(x[f]);
        gradient[classes_ * features + c] += error;
      }
    }
    ++steps_;
    for (size_t i = 0; i < w_.size(); ++i) {
      if (spec.solver == "adamw") {  // torch.optim.AdamW's documentation, line by line
        w_[i] -= spec.lr * spec.weight_decay * w_[i];
        auto& [m, v] = moments_[i];
        m = spec.beta1 * m + (1 - spec.beta1) * gradient[i];
        v = spec.beta2 * v + (1 - spec.beta2) * gradient[i] * gradient[i];
        const double first = m / (1 - std::pow(spec.beta1, steps_)), second = v / (1 - std::pow(spec.beta2, steps_));
        w_[i] -= spec.lr * first / (std::sqrt(second) + spec.epsilon);
      } else {
        moments_[i].m = spec.momentum * moments_[i].m + gradient[i] + spec.weight_decay * w_[i];
        w_[i] -= spec.lr * moments_[i].m;
      }
    }
    return loss / static_cast<double>(positions.size());
  }
  const std::vector<double>& weights() const { return w_; }

 private:
  struct Moments {
    double m = 0, v = 0;  // of sgd: the velocity
  };
  std::vector<double> w_;
  std::vector<Moments> moments_;
  const Dataset& data_;
  size_t classes_;
  int steps_ = 0;
};

JobSpec SmallLinear(DType dtype) {
  JobSpec spec = ZooJob("linear", {{"input", "5"}, {"classes", "3"}});
  spec.dtype = dtype;
  spec.local.epochs = 3;
  spec.local.batch = 4;
  spec.local.lr = 0.1;
  return spec;
}

struct StepsCase {
  const char* name;
  double momentum;
  double weight_decay;
  const char* solver = "sgd";
};
class StepsReferenceTest : public ::testing::TestWithParam<StepsCase> {};

TEST_P(StepsReferenceTest, AgreesInDoubleWithTheHandWrittenOne) {
  JobSpec spec = SmallLinear(DType::kF64);
  spec.local.solver = GetParam().solver;
  spec.local.beta2 = 0.99;
  spec.local.epsilon = 1e-3;
  spec.local.momentum = GetParam().momentum;
  spec.local.weight_decay = GetParam().weight_decay;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  ASSERT_EQ(model.layout.float_dtype(), DType::kF64);
  const Dataset data = Classes(14, {5}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model, 77), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult again, learner->Train(RequestFor(spec, model, 77), &data));
  EXPECT_TRUE(again.update == result.update) << "moments of one task are in the next";

  const std::vector<double> initial = Floats<double>(model.bytes, 18);
  ReferenceSteps reference(initial, data, 3);
  BatchOrder order(14, 4, 77);
  double loss = 0;
  for (uint64_t step = 0; step < 3 * order.batches_per_epoch(); ++step) {
    const auto positions = order.At(step);
    loss += reference.Step(positions, spec.local) * static_cast<double>(positions.size());
  }
  const std::vector<double> update = Floats<double>(result.update, 18);
  // Eighteen sums of at most five products in double, repeated over a dozen steps: 1e-12 is a hundred times their rounding.
  for (size_t i = 0; i < 18; ++i) EXPECT_NEAR(update[i], reference.weights()[i] - initial[i], 1e-12) << i;
  EXPECT_NEAR(result.metrics.at("train_loss"), loss / (3 * 14), 1e-12);
  EXPECT_EQ(result.weight, 14);
  EXPECT_EQ(result.examples, 14U);
}

INSTANTIATE_TEST_SUITE_P(Parameters, StepsReferenceTest,
                         ::testing::Values(StepsCase{"Plain", 0, 0}, StepsCase{"Momentum", 0.9, 0}, StepsCase{"Decay", 0, 0.1}, StepsCase{"Both", 0.5, 0.01},
                                           StepsCase{"AdamW", 0, 0, "adamw"}, StepsCase{"AdamWDecay", 0, 0.1, "adamw"}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(BatchOrderTest, VisitsEveryExampleOnceInEachEpoch) {
  for (size_t count : {1U, 3U, 8U, 9U, 10U}) {
    BatchOrder order(count, 4, 5);
    std::vector<uint32_t> last;
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<uint32_t> seen;
      for (size_t i = 0; i < order.batches_per_epoch(); ++i) {
        const auto batch = order.At(epoch * order.batches_per_epoch() + i);
        EXPECT_TRUE(count == 1 || batch.size() > 1) << "a batch of one example";
        seen.insert(seen.end(), batch.begin(), batch.end());
      }
      if (count > 8) {
        EXPECT_NE(seen, last) << "each epoch has its own order";
      }
      last = seen;
      std::sort(seen.begin(), seen.end());
      ASSERT_EQ(seen.size(), count);
      for (uint32_t i = 0; i < count; ++i) EXPECT_EQ(seen[i], i);
    }
  }
}

TEST(TorchLearnerTest, RepeatsItselfForEqualSeedsAndDiffersForOthers) {
  JobSpec spec = ZooJob("cnn");
  spec.local.steps = 5;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(100, {1, 28, 28}, 10);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult first, learner->Train(RequestFor(spec, model, 1), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult other, learner->Train(RequestFor(spec, model, 2), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult again, CpuLearner()->Train(RequestFor(spec, model, 1), &data));
  EXPECT_EQ(first.update, again.update);
  EXPECT_NE(first.update, other.update);
}

TEST(TorchLearnerTest, LeavesNothingOfOneTaskInTheNext) {
  JobSpec spec = SmallLinear(DType::kF32);
  spec.local.momentum = 0.9;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(20, {5}, 3);
  const Dataset others = Classes(8, {5}, 3, 99);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult first, learner->Train(RequestFor(spec, model), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult between, learner->Evaluate(RequestFor(spec, model), &others));
  EXPECT_EQ(between.examples, 8U);
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult again, learner->Train(RequestFor(spec, model), &data));
  EXPECT_EQ(first.update, again.update);
}

TEST(TorchLearnerTest, ComputesInBfloat16OnRequestAndKeepsTheModelsType) {
  JobSpec spec = ZooJob("mlp", {{"input", "5"}, {"classes", "3"}, {"hidden", "16"}});
  spec.local.batch = 4;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(40, {5}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult exact, learner->Train(RequestFor(spec, model), &data));
  spec.local.precision = "bf16";
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult rough, learner->Train(RequestFor(spec, model), &data));
  spec.local.precision = "f32";
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult again, learner->Train(RequestFor(spec, model), &data));
  EXPECT_EQ(again.update, exact.update) << "nothing of it stays";
  ASSERT_EQ(rough.update.size(), exact.update.size());
  EXPECT_NE(rough.update, exact.update);
  const size_t count = model.layout.float_count();
  const std::vector<float> a = Floats<float>(rough.update, count), b = Floats<float>(exact.update, count);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  EXPECT_LT(std::sqrt(difference / norm), 2e-2);  // eight bits of mantissa, as moe_lora.md has it
  auto cohorts = MakeTorchLearner({.device = "cpu", .threads = 1, .cohort = 4});
  ASSERT_THAT(cohorts, testing::IsOk());
  spec.local.precision = "bf16";
  const std::vector<CohortMember> members = {{RequestFor(spec, model), &data}, {RequestFor(spec, model, 2), &data}};
  const auto together = (*cohorts)->TrainCohort(members);
  ASSERT_THAT(together[0], testing::IsOk());
  const std::vector<float> c = Floats<float>(together[0]->update, count);
  difference = 0;
  for (size_t i = 0; i < count; ++i) difference += std::pow(static_cast<double>(c[i]) - static_cast<double>(b[i]), 2);
  EXPECT_GT(difference, 0);
  EXPECT_LT(std::sqrt(difference / norm), 2e-2);
}

TEST(TorchLearnerTest, EvaluatesLossAndAccuracyInBatches) {
  JobSpec spec = ZooJob("linear", {{"input", "2"}, {"classes", "2"}});
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel model, InitialModel(spec));
  const float weights[] = {1, 0, 0, 1, 0, 0};  // logits are the two features
  std::memcpy(model.bytes.data(), weights, sizeof(weights));
  auto all = std::make_shared<Examples>();
  all->example_shape = {2};
  for (int i = 0; i < 1200; ++i) {  // more than two batches; every fourth label is wrong
    all->x.insert(all->x.end(), {1, 0});
    all->labels.push_back(i % 4 == 0 ? 1 : 0);
  }
  Dataset data{all, {}};
  for (uint32_t i = 0; i < 1200; ++i) data.indices.push_back(i);
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult result, CpuLearner()->Evaluate(RequestFor(spec, model), &data));
  EXPECT_EQ(result.examples, 1200U);
  EXPECT_DOUBLE_EQ(result.accuracy, 0.75);
  EXPECT_NEAR(result.loss, std::log(std::exp(1.0) + 1) - 0.75, 1e-6);
}

TEST(TorchLearnerTest, FitsRegressionTargets) {
  JobSpec spec = ZooJob("linear", {{"input", "1"}, {"classes", "1"}});
  spec.local.epochs = 200;
  spec.local.batch = 8;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  auto all = std::make_shared<Examples>();
  all->example_shape = {1};
  Dataset data;
  for (uint32_t i = 0; i < 16; ++i) {
    all->x.push_back(static_cast<float>(i) / 8 - 1);
    all->targets.push_back(3 * all->x.back() - 0.5F);
    data.indices.push_back(i);
  }
  data.all = all;
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model), &data));
  const FlatModel trained = Applied<float>(model, result.update);
  EXPECT_NEAR(Floats<float>(trained.bytes, 2)[0], 3, 1e-3);
  EXPECT_NEAR(Floats<float>(trained.bytes, 2)[1], -0.5, 1e-3);
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult evaluated, learner->Evaluate(RequestFor(spec, trained), &data));
  EXPECT_LT(evaluated.loss, 1e-5);
  EXPECT_TRUE(std::isnan(evaluated.accuracy));
  JobSpec two = ZooJob("linear", {{"input", "1"}, {"classes", "2"}});
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel wide, InitialModel(two));
  EXPECT_THAT(learner->Train(RequestFor(two, wide), &data), StatusIs(StatusCode::kInvalidArgument, HasSubstr("classes=1")));
}

TEST(TorchLearnerTest, ReportsProgressAndStopsWhenTold) {
  JobSpec spec = SmallLinear(DType::kF32);
  spec.local.epochs = 1;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(16, {5}, 3);
  std::vector<float> seen;
  TrainRequest request = RequestFor(spec, model);
  request.progress = [&](float done) {
    seen.push_back(done);
    return true;
  };
  const auto learner = CpuLearner();
  ASSERT_TRUE(learner->Train(request, &data).ok());
  EXPECT_THAT(seen, ::testing::ElementsAre(0.25F, 0.5F, 0.75F, 1.0F));
  request.progress = [](float done) { return done < 0.5F; };
  EXPECT_THAT(learner->Train(request, &data), StatusIs(StatusCode::kCancelled, HasSubstr("step 2 of 4")));
  EXPECT_THAT(learner->Evaluate(request, &data), StatusIs(StatusCode::kCancelled, HasSubstr("16 of 16")));
}

TEST(TorchLearnerTest, NamesTheStepAtWhichTheLossLeavesTheNumbers) {
  JobSpec spec = ZooJob("mlp", {{"input", "5"}, {"classes", "3"}, {"hidden", "8"}});
  spec.local.steps = 200;
  spec.local.batch = 4;
  spec.local.lr = 1e30;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(16, {5}, 3);
  EXPECT_THAT(CpuLearner()->Train(RequestFor(spec, model), &data), StatusIs(StatusCode::kInternal, ::testing::ContainsRegex("at step [0-9]+ of 200")));
}

TEST(TorchLearnerTest, StartsFromNamedInitialWeights) {
  const std::filesystem::path file = std::filesystem::temp_directory_path() / fmt::format("learner_test.{}.safetensors", ::getpid());
  JobSpec spec = ZooJob("mlp");
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  ASSERT_THAT(WriteSafetensors(file, model.layout, model.bytes), testing::IsOk());
  spec.seed = 999;
  spec.model.init = file.string();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel loaded, InitialModel(spec));
  EXPECT_EQ(loaded.bytes, model.bytes);
  spec.model.zoo = "linear";
  EXPECT_THAT(InitialModel(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr(file.filename().string())));
  std::filesystem::remove(file);
}

TEST(TorchLearnerErrorsTest, NameWhatIsWrongWithATask) {
  JobSpec spec = SmallLinear(DType::kF32);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(6, {5}, 3);
  const auto learner = CpuLearner();
  const auto invalid = [](const char* text) { return StatusIs(StatusCode::kInvalidArgument, HasSubstr(text)); };
  EXPECT_THAT(learner->Train(RequestFor(spec, model), nullptr), invalid("no examples"));
  const Dataset empty{data.all, {}};
  EXPECT_THAT(learner->Train(RequestFor(spec, model), &empty), invalid("no examples"));
  const Dataset outside{data.all, {6}};
  EXPECT_THAT(learner->Train(RequestFor(spec, model), &outside), invalid("example 6"));
  const Dataset wide = Classes(6, {6}, 3);
  EXPECT_THAT(learner->Train(RequestFor(spec, model), &wide), invalid("has 6 values (6), the model expects 5"));
  const Dataset classes = Classes(6, {5}, 4);
  EXPECT_THAT(learner->Train(RequestFor(spec, model), &classes), invalid("label 3"));

  TrainRequest request = RequestFor(spec, model);
  request.model = request.model.subspan(4);
  EXPECT_THAT(learner->Train(request, &data), invalid("expected a model of 72 bytes, got 68"));
  JobSpec other = SmallLinear(DType::kF64);
  EXPECT_THAT(learner->Train(RequestFor(other, model), &data), invalid("expected F64 trainable [3, 5]"));
  other = SmallLinear(DType::kF32);
  other.local.solver = "sdg";
  EXPECT_THAT(learner->Train(RequestFor(other, model), &data), StatusIs(StatusCode::kNotFound, HasSubstr("did you mean 'sgd'")));
  other = SmallLinear(DType::kF32);
  other.local.batch = 0;
  EXPECT_THAT(learner->Train(RequestFor(other, model), &data), invalid("local.batch"));
  EXPECT_THAT(learner->Train({}, &data), invalid("no job specification"));
  EXPECT_TRUE(learner->Train(RequestFor(spec, model), &data).ok()) << "a refused task leaves the learner usable";
}

TEST(TorchLearnerErrorsTest, NameAnUnknownOrAbsentDevice) {
  EXPECT_THAT(MakeTorchLearner({.device = "tpu"}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("'tpu'")));
  EXPECT_THAT(MakeTorchLearner({.device = "cuda:4096"}), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("device cuda:4096")));
  EXPECT_THAT(MakeTorchLearner({.device = "cpu", .threads = -1}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("-1")));
  EXPECT_EQ(CpuLearner()->device(), "cpu");
}

}  // namespace
}  // namespace tributary::client
