// User models: TorchScript files, made here through LibTorch's own compiler as torch.jit.script would.
#include <gmock/gmock.h>
#include <torch/csrc/jit/api/module.h>
#include <ATen/ops/zeros.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using ::testing::HasSubstr;
using testing::StatusIs;

class TorchScriptTest : public ::testing::Test {
 protected:
  TorchScriptTest() : path_((fs::temp_directory_path() / fmt::format("script_test.{}.pt", ::getpid())).string()) {}
  ~TorchScriptTest() override { fs::remove(path_); }

  // Softmax regression of 5 features with a running mean and a batch counter.
  void Save(const std::string& forward, at::ScalarType counter = at::kLong) {
    torch::jit::Module module("Net");
    at::Tensor weight = at::zeros({3, 5});
    for (int64_t i = 0; i < 15; ++i) weight.view({15})[i] = 0.01 * static_cast<double>(i);
    module.register_parameter("weight", weight, /*is_buffer=*/false);
    weight.requires_grad_(true);
    at::Tensor bias = at::zeros({3});
    module.register_parameter("bias", bias, /*is_buffer=*/false);
    bias.requires_grad_(true);
    module.register_buffer("mean", at::zeros({5}));
    module.register_buffer("batches", at::zeros({}, at::TensorOptions().dtype(counter)));
    module.register_attribute("training", c10::BoolType::get(), true);
    module.define(forward);
    module.save(path_);
  }

  JobSpec Job() const {
    JobSpec spec;
    spec.model.torchscript = path_;
    spec.local.steps = 4;
    spec.local.batch = 4;
    return spec;
  }

  static constexpr const char* kForward = R"(
def forward(self, x):
    if self.training:
        self.mean.copy_(x.mean(0))
        self.batches.add_(1)
    return torch.matmul(x, self.weight.t()) + self.bias
)";

  std::string path_;
};

TEST_F(TorchScriptTest, TrainsAsTheSameModelOfTheZoo) {
  Save(kForward);
  const JobSpec script = Job();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(script));
  EXPECT_EQ(model.layout.trainable_count(), 18U);
  EXPECT_EQ(model.layout.float_count(), 23U);
  EXPECT_EQ(model.layout.counter_count(), 1U);
  const std::vector<float> begin = Floats<float>(model.bytes, 15);
  for (size_t i = 0; i < 15; ++i) EXPECT_FLOAT_EQ(begin[i], 0.01F * static_cast<float>(i));

  const Dataset data = Classes(16, {5}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(script, model, 9), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult again, learner->Train(RequestFor(script, model, 9), &data));
  EXPECT_EQ(result.update, again.update);

  JobSpec zoo = ZooJob("linear", {{"input", "5"}, {"classes", "3"}});
  zoo.local = script.local;
  TRIB_ASSERT_OK_AND_ASSIGN(FlatModel same, InitialModel(zoo));
  ASSERT_EQ(same.layout.trainable_count(), 18U);
  std::memcpy(same.bytes.data(), model.bytes.data(), 18 * sizeof(float));
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, learner->Train(RequestFor(zoo, same, 9), &data));
  const std::vector<float> got = Floats<float>(result.update, 23);
  const std::vector<float> want = Floats<float>(expected.update, 18);
  for (size_t i = 0; i < 18; ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << i;  // matmul + bias against one fused call
  EXPECT_NE(got[18], 0) << "the running mean is a value and has moved";
  int64_t batches = 0;
  std::memcpy(&batches, result.update.data() + model.layout.float_bytes(), sizeof(batches));
  EXPECT_EQ(batches, 4);
}

TEST_F(TorchScriptTest, EvaluatesInEvaluationMode) {
  Save(kForward);
  const JobSpec spec = Job();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(16, {5}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult before, learner->Evaluate(RequestFor(spec, model), &data));
  EXPECT_EQ(before.examples, 16U);
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult after, learner->Evaluate(RequestFor(spec, Applied<float>(model, result.update)), &data));
  EXPECT_LT(after.loss, before.loss);
}

TEST_F(TorchScriptTest, ConvertsToDouble) {
  Save(kForward);
  JobSpec spec = Job();
  spec.dtype = DType::kF64;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  EXPECT_EQ(model.layout.float_dtype(), DType::kF64);
  const Dataset data = Classes(16, {5}, 3);
  EXPECT_THAT(CpuLearner()->Train(RequestFor(spec, model), &data), testing::IsOk());
}

TEST_F(TorchScriptTest, IsReloadedWhenTheFileChanges) {
  Save(kForward);
  const JobSpec spec = Job();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(16, {5}, 3);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult before, learner->Evaluate(RequestFor(spec, model), &data));
  Save("\ndef forward(self, x):\n    return torch.matmul(x, self.weight.t()) * 1000.0 + self.bias\n");
  TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult after, learner->Evaluate(RequestFor(spec, model), &data));
  EXPECT_NE(before.loss, after.loss);
}

TEST_F(TorchScriptTest, RefusesWhatItCannotTrain) {
  const JobSpec spec = Job();
  EXPECT_THAT(InitialModel(spec), StatusIs(StatusCode::kNotFound, HasSubstr(path_)));
  std::ofstream(path_) << "not a zip archive";
  EXPECT_THAT(InitialModel(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("not a TorchScript file")));
  Save(kForward, at::kInt);
  EXPECT_THAT(InitialModel(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("buffer 'batches'")));
  Save("\ndef forward(self, x):\n    return x.sum()\n");
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(16, {5}, 3);
  EXPECT_THAT(CpuLearner()->Train(RequestFor(spec, model), &data), StatusIs(StatusCode::kInvalidArgument, HasSubstr("expected an output of shape")));
  Save("\ndef forward(self, x):\n    return torch.matmul(x, self.weight)\n");
  EXPECT_THAT(CpuLearner()->Train(RequestFor(spec, model), &data), StatusIs(StatusCode::kInternal, HasSubstr("mat1 and mat2 shapes cannot be multiplied")));
}

}  // namespace
}  // namespace tributary::client
