// The contract of every model in models.def, and the zoo's errors.
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {

void PrintTo(const ZooEntry& entry, std::ostream* out) { *out << entry.name; }

namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::StatusIs;

// What a line of models.def promises with its default parameters: trainable elements (a new model adds its count here).
const std::map<std::string, size_t> kParameterCounts = {
    {"linear", 7'850}, {"mlp", 159'010}, {"cnn", 207'178}, {"cnn4", 890'410}, {"resnet18", 11'689'512}, {"transformer", 918'656}, {"moe_transformer", 3'478'656},
    {"moe_mlp", 141'120}};

std::vector<int64_t> InputOf(const ZooEntry& entry) {
  const std::string defaults = entry.defaults;
  std::stringstream text(defaults.substr(defaults.find("input=") + 6));
  std::vector<int64_t> shape(1);
  text >> shape[0];
  while (text.peek() == 'x') {
    text.ignore();
    text >> shape.emplace_back();
  }
  return shape;
}

// Examples that the entry's model can learn, as many as are asked for.
Dataset DataFor(const ZooEntry& entry, size_t count) {
  const bool language = std::string(entry.name).find("transformer") != std::string::npos || std::string(entry.name) == "moe_mlp";
  return language ? Tokens(count, InputOf(entry)[0]) : Classes(count, InputOf(entry), 2);
}

class ModelContractTest : public ::testing::TestWithParam<ZooEntry> {};

TEST_P(ModelContractTest, DeclaresItsLayoutAndParameterCount) {
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(ZooJob(GetParam().name)));
  EXPECT_EQ(model.bytes.size(), model.layout.total_bytes());
  const auto expected = kParameterCounts.find(GetParam().name);
  ASSERT_NE(expected, kParameterCounts.end()) << "add the parameter count of " << GetParam().name << " to this test";
  EXPECT_EQ(model.layout.trainable_count(), expected->second);
}

TEST_P(ModelContractTest, BeginsFiniteEqualForEqualSeedsAndOtherForOthers) {
  JobSpec spec = ZooJob(GetParam().name);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel first, InitialModel(spec));
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel again, InitialModel(spec));
  EXPECT_EQ(first.bytes, again.bytes);
  for (float value : Floats<float>(first.bytes, first.layout.float_count())) ASSERT_TRUE(std::isfinite(value));
  spec.seed = 12;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel other, InitialModel(spec));
  EXPECT_NE(first.bytes, other.bytes);
}

TEST_P(ModelContractTest, ComesBackFromTheModuleAsItWentIn) {
  JobSpec spec = ZooJob(GetParam().name);
  spec.local.epochs = 0;  // zero steps change nothing
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = DataFor(GetParam(), 2);
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, CpuLearner()->Train(RequestFor(spec, model), &data));
  EXPECT_EQ(Applied<float>(model, result.update).bytes, model.bytes);
  for (float delta : Floats<float>(result.update, model.layout.trainable_count())) ASSERT_EQ(delta, 0);
}

TEST_P(ModelContractTest, LearnsATinyFixedBatch) {
  JobSpec spec = ZooJob(GetParam().name);
  spec.local.steps = GetParam().name == std::string("resnet18") ? 6 : 12;  // its images are of 224x224
  spec.local.batch = 4;
  const std::string name = GetParam().name;
  spec.local.lr = name.find("transformer") != std::string::npos || name == "moe_mlp" ? 0.1 : name == "cnn4" ? 0.03 : 0.01;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = DataFor(GetParam(), 4);
  const auto learner = CpuLearner();
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, learner->Train(RequestFor(spec, model), &data));
  const FlatModel trained = Applied<float>(model, result.update);
  spec.local.steps = 1;
  spec.local.lr = 0;  // its loss in training mode, where batch normalisation uses the batch's own statistics
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult before, learner->Train(RequestFor(spec, model), &data));
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult after, learner->Train(RequestFor(spec, trained), &data));
  EXPECT_LT(after.metrics.at("train_loss"), 0.7 * before.metrics.at("train_loss"));
}

INSTANTIATE_TEST_SUITE_P(Zoo, ModelContractTest, ::testing::ValuesIn(ModelZoo().begin(), ModelZoo().end()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ResNet18Test, HasTorchvisionsNamesAndShapesInItsOrder) {
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(ZooJob("resnet18")));
  std::ifstream golden(TRIB_GOLDEN_DIR "/resnet18_torchvision.txt");
  ASSERT_TRUE(golden.is_open());
  std::map<TensorKind, std::vector<std::string>> expected;  // torchvision's order within each kind
  size_t entries = 0;
  for (std::string line; std::getline(golden, line);) {
    if (line.rfind('#', 0) == 0) continue;
    ++entries;
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string shape = space == std::string::npos ? "" : line.substr(space + 1);
    const PlacedTensor* tensor = model.layout.Find(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(fmt::format("{}", fmt::join(tensor->spec.shape, "x")), shape) << name;
    const TensorKind kind = name.find("num_batches_tracked") != std::string::npos ? TensorKind::kCounter
                            : name.find("running_") != std::string::npos          ? TensorKind::kBuffer
                                                                                  : TensorKind::kTrainable;
    EXPECT_EQ(tensor->spec.kind, kind) << name;
    expected[kind].push_back(name);
  }
  EXPECT_EQ(entries, 122U);
  EXPECT_EQ(model.layout.tensors().size(), entries);
  std::map<TensorKind, std::vector<std::string>> ours;
  for (const PlacedTensor& tensor : model.layout.tensors()) ours[tensor.spec.kind].push_back(tensor.spec.name);
  EXPECT_EQ(ours, expected);
}

TEST(ResNet18Test, TrainsSmallImagesAndCountsBatches) {
  JobSpec spec = ZooJob("resnet18", {{"input", "3x32x32"}, {"classes", "10"}, {"stem", "small"}});
  spec.local.steps = 2;
  spec.local.batch = 4;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  EXPECT_EQ(model.layout.Find("conv1.weight")->spec.shape, (std::vector<int64_t>{64, 3, 3, 3}));
  const Dataset data = Classes(9, {3, 32, 32}, 10);  // a rest of one joins the batch before it
  TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult result, CpuLearner()->Train(RequestFor(spec, model), &data));
  const PlacedTensor* counter = model.layout.Find("layer4.1.bn2.num_batches_tracked");
  int64_t batches = 0;
  std::memcpy(&batches, result.update.data() + counter->offset_bytes, sizeof(batches));
  EXPECT_EQ(batches, 2);
  const PlacedTensor* variance = model.layout.Find("bn1.running_var");
  float value = 0;
  std::memcpy(&value, result.update.data() + variance->offset_bytes, sizeof(value));
  EXPECT_NE(value, 1.0F) << "running statistics are values and have moved";
}

TEST(ZooErrorsTest, NameWhatIsWrong) {
  EXPECT_THAT(InitialModel(ZooJob("resnet81")), StatusIs(StatusCode::kNotFound, HasSubstr("did you mean 'resnet18'")));
  EXPECT_THAT(InitialModel(ZooJob("mlp", {{"hiden", "3"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("did you mean 'hidden'")));
  for (const char* bad : {"", "x", "3x", "-1", "0", "1e3", "99999999999", "16777216x16777216"}) {
    EXPECT_THAT(InitialModel(ZooJob("mlp", {{"hidden", bad}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("'hidden'"))) << bad;
  }
  EXPECT_THAT(InitialModel(ZooJob("cnn", {{"input", "28x28"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("expected 3 integers")));
  EXPECT_THAT(InitialModel(ZooJob("cnn", {{"input", "1x3x28"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("at least 4x4")));
  EXPECT_THAT(InitialModel(ZooJob("resnet18", {{"stem", "tiny"}})), StatusIs(StatusCode::kInvalidArgument, HasSubstr("imagenet, small")));
  JobSpec tensors;
  tensors.model.tensors = "m.safetensors";
  EXPECT_THAT(InitialModel(tensors), StatusIs(StatusCode::kInvalidArgument, HasSubstr("no forward pass")));
}

TEST(ZooErrorsTest, AModelThatDoesNotFitMemoryIsRefused) {
  // 2^24 x 2^24 weights are 2^50 bytes, over the layout's limit or the machine's memory, whichever is met first.
  const auto model = InitialModel(ZooJob("linear", {{"input", "16777216"}, {"classes", "16777216"}}));
  EXPECT_FALSE(model.ok());
}

}  // namespace
}  // namespace tributary::client
