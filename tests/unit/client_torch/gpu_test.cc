// The learner on a GPU against the learner on the CPU, in double: recorded steps, cohorts, updates that stay on the device.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>

#include "aggregator/core/kernels_reference.h"
#include "client/core/device_update.h"
#include "common/eggroll_spec.h"
#include "tests/support/require.h"
#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

using testing::IsOk;

// "" if LibTorch has a GPU here.
std::string GpuMissing() {
  const auto learner = MakeTorchLearner({.device = "cuda"});
  return learner.ok() ? "" : MessageOf(learner.status());
}

std::unique_ptr<Learner> OnGpu() {
  auto learner = MakeTorchLearner({.device = "cuda"});
  EXPECT_THAT(learner, IsOk());
  return *std::move(learner);
}

template <typename T>
double RelativeDifference(const TensorLayout& layout, std::span<const std::byte> a, std::span<const std::byte> b) {
  const std::vector<T> x = Floats<T>(a, layout.float_count()), y = Floats<T>(b, layout.float_count());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
    norm += std::pow(static_cast<double>(y[i]), 2);
  }
  return std::sqrt(difference / norm);
}

struct ModelCase {
  const char* zoo;
  ParamMap params;
  std::vector<int64_t> input;  // empty: tokens
};
std::ostream& operator<<(std::ostream& out, const ModelCase& c) { return out << c.zoo; }

class GpuModelTest : public ::testing::TestWithParam<ModelCase> {
 protected:
  JobSpec Job() const {
    JobSpec spec = ZooJob(GetParam().zoo, GetParam().params);
    spec.dtype = DType::kF64;
    spec.local.epochs = 2;
    spec.local.batch = 4;
    spec.local.lr = 0.05;
    spec.local.momentum = 0.5;
    return spec;
  }
  Dataset Data(size_t count) const { return GetParam().input.empty() ? Tokens(count, 16) : Classes(count, GetParam().input, 3); }
};

TEST_P(GpuModelTest, TrainsAsTheProcessorDoesStepsBeingRecordedAndRepeated) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  JobSpec spec = Job();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Data(18);  // batches of four, and of two
  const auto gpu = OnGpu();
  const auto cpu = CpuLearner();
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    if (seed == 4) {  // a root of squares: where those are rounding errors alone, ε must hide them
      spec.local.solver = "adamw";
      spec.local.momentum = 0;
      spec.local.weight_decay = 0.1;
      spec.local.epsilon = 1e-2;
    }
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult got, gpu->Train(RequestFor(spec, model, seed), &data));
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, cpu->Train(RequestFor(spec, model, seed), &data));
    EXPECT_LT(RelativeDifference<double>(model.layout, got.update, expected.update), 1e-9) << spec.local.solver << ", task " << seed;
    EXPECT_NEAR(got.metrics.at("train_loss"), expected.metrics.at("train_loss"), 1e-9);
    TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult loss, gpu->Evaluate(RequestFor(spec, model), &data));
    TRIB_ASSERT_OK_AND_ASSIGN(const EvaluateResult expected_loss, cpu->Evaluate(RequestFor(spec, model), &data));
    EXPECT_NEAR(loss.loss, expected_loss.loss, 1e-9);
  }
}

INSTANTIATE_TEST_SUITE_P(Zoo, GpuModelTest,
                         ::testing::Values(ModelCase{"mlp", {{"input", "7"}, {"classes", "3"}, {"hidden", "9x6"}}, {7}},
                                           ModelCase{"cnn", {{"input", "1x8x8"}, {"classes", "3"}, {"width", "3"}, {"hidden", "5"}}, {1, 8, 8}},
                                           ModelCase{"resnet18", {{"input", "3x16x16"}, {"classes", "3"}, {"stem", "small"}}, {3, 16, 16}},
                                           ModelCase{"transformer", {{"input", "16"}, {"layers", "2"}, {"width", "16"}, {"heads", "2"}, {"hidden", "24"}}, {}},
                                           // Chosen by the kernel, served by the loop; and by the processor's router.
                                           ModelCase{"moe_transformer", {{"input", "16"}, {"layers", "2"}, {"width", "16"}, {"heads", "2"}, {"experts", "4"},
                                                                         {"expert_hidden", "24"}, {"aux.lbl", "0.1"}}, {}},
                                           ModelCase{"moe_mlp", {{"input", "16"}, {"experts", "4"}, {"router", "quantile"}}, {}}),
                         [](const auto& info) { return std::string(info.param.zoo); });

// Rows moved by kernels, in single precision and (grouped products) in bfloat16, against the processor's loop.
TEST(GpuMoeTest, RowsMovedByKernelsGiveTheProcessorsUpdateAndCounts) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  for (const std::string precision : {"f32", "bf16"}) {
    JobSpec spec = ZooJob("moe_transformer", {{"input", "16"}, {"layers", "2"}, {"width", "32"}, {"heads", "2"}, {"experts", "8"}, {"expert_hidden", "16"}, {"router", "alf"}});
    spec.local.steps = 1;
    spec.local.batch = 8;
    spec.local.lr = 0.1;
    TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
    TRIB_ASSERT_OK_AND_ASSIGN(const TensorLayout travelling, WithGroups(model.layout, {""}));
    const Dataset data = Tokens(8, 16);
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, CpuLearner()->Train(RequestFor(spec, model), &data));
    spec.local.precision = precision;
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult got, OnGpu()->Train(RequestFor(spec, model), &data));
    EXPECT_LT(RelativeDifference<float>(travelling, got.update, expected.update), precision == "f32" ? 1e-3 : 6e-2) << precision;
    for (size_t l = 0; l < 2; ++l) {
      EXPECT_EQ(got.moe.at(l).tokens, expected.moe.at(l).tokens);
      int64_t moved = 0;  // near ties may fall to another expert
      for (size_t j = 0; j < 8; ++j) moved += std::abs(got.moe[l].counts.at(j) - expected.moe[l].counts.at(j));
      EXPECT_LE(moved, precision == "f32" ? 2 : expected.moe[l].tokens / 8) << precision << ", layer " << l;
    }
  }
}

class GpuCohortTest : public GpuModelTest {};

TEST_P(GpuCohortTest, TrainsClientsSideBySideAsTheProcessorTrainsThemAlone) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const JobSpec spec = Job();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset all = Data(60);
  std::vector<Dataset> shards(7, Dataset{.all = all.all, .indices = {}});
  for (uint32_t i = 0; i < 60; ++i) shards[i % 13 < 7 ? i % 13 : 0].indices.push_back(i);  // one of 32, six of 4 or 5
  const auto gpu = OnGpu();
  const auto cpu = CpuLearner();
  ASSERT_GT(gpu->cohort_size(), 7U);
  for (int round = 0; round < 4; ++round) {  // as it is, recorded, repeated
    std::vector<CohortMember> members;
    for (size_t i = 0; i < shards.size(); ++i) members.push_back({RequestFor(spec, model, static_cast<uint64_t>(round) * 100 + i), &shards[i]});
    const auto together = gpu->TrainCohort(members);
    for (size_t i = 0; i < members.size(); ++i) {
      ASSERT_THAT(together[i], IsOk());
      TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, cpu->Train(members[i].request, members[i].data));
      EXPECT_LT(RelativeDifference<double>(model.layout, together[i]->update, expected.update), 1e-9) << "round " << round << ", client " << i;
      EXPECT_NEAR(together[i]->metrics.at("train_loss"), expected.metrics.at("train_loss"), 1e-9);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Chains, GpuCohortTest,
                         ::testing::Values(ModelCase{"linear", {{"input", "7"}, {"classes", "3"}}, {7}},
                                           ModelCase{"mlp", {{"input", "7"}, {"classes", "3"}, {"hidden", "9x6"}}, {7}},
                                           ModelCase{"cnn", {{"input", "1x8x8"}, {"classes", "3"}, {"width", "3"}, {"hidden", "5"}}, {1, 8, 8}},
                                           ModelCase{"cnn4", {{"input", "3x16x16"}, {"classes", "3"}, {"width", "2"}, {"hidden", "6"}}, {3, 16, 16}}),
                         [](const auto& info) { return std::string(info.param.zoo); });

// Of a model whose steps are products of matrices alone, which give the same bits each time.
TEST(GpuUpdateTest, AnUpdateMadeOnTheDeviceHasTheBytesOfOneMadeOnTheHost) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  JobSpec spec = ZooJob("mlp", {{"input", "64"}, {"classes", "10"}, {"hidden", "3000x1500"}});  // 4.7 million elements: two parts
  spec.codec = "int8";
  spec.cohort.size = 4;
  spec.privacy.enabled = true;
  spec.privacy.placement = NoisePlacement::kDistributed;
  spec.privacy.clip = 0.1;
  spec.privacy.noise_multiplier = 1;
  spec.privacy.insecure_seed = true;
  spec.local.batch = 16;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset data = Classes(64, {64}, 10);
  const UpdateRequest update{.spec = &spec, .encoding = spec.Encoding(model.layout), .client = "client", .version = 3, .clip = 0, .noise_key = {}, .feedback = {}};
  for (const bool cohort : {false, true}) {
    const auto gpu = OnGpu();
    const auto train = [&](bool stays) {
      CohortMember member{RequestFor(spec, model, 9), &data};
      member.request.may_stay_on_device = stays;
      const std::vector<CohortMember> members = {member, member};
      return cohort ? gpu->TrainCohort(members)[0] : gpu->Train(member.request, member.data);
    };
    TRIB_ASSERT_OK_AND_ASSIGN(TrainResult host, train(false));
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult device, train(true));
    ASSERT_EQ(host.on_device, nullptr);
    ASSERT_NE(device.on_device, nullptr);
    EXPECT_TRUE(device.update.empty());
    const size_t elements = model.layout.trainable_count();
    const std::byte* const bytes = host.update.data();
    const double weight = 0.3;
    std::vector<double> expected_sum(elements), sum(elements);
    EXPECT_TRUE(reference::FoldF32(expected_sum.data(), &bytes, &weight, 1, elements, /*first=*/true));
    const DeviceTerm term{device.on_device.get(), weight};
    TRIB_ASSERT_OK_AND_ASSIGN(const bool in_range, device.on_device->Fold({&term, 1}, /*first=*/true, sum));
    EXPECT_TRUE(in_range);
    EXPECT_EQ(sum, expected_sum);
    EXPECT_EQ(device.on_device->max_abs(), aggregator::Scan(std::span(host.update).first(model.layout.float_bytes()), DType::kF32).max_abs);
    TRIB_ASSERT_OK_AND_ASSIGN(const EncodedUpdate expected, MakeUpdate(update, std::move(host.update), &host.scalars));
    std::vector<std::byte> got(expected.bytes.size());
    const UpdatePlan plan = PlanUpdate(update);
    TRIB_ASSERT_OK_AND_ASSIGN(const double norm, device.on_device->Encode(plan, [&](size_t at, std::span<const std::byte> part) {
      std::memcpy(got.data() + at, part.data(), part.size());
      return absl::OkStatus();
    }));
    EXPECT_EQ(norm, expected.norm);
    EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.bytes.begin(), expected.bytes.end())) << (cohort ? "of a cohort" : "alone");
  }
}

struct PopulationCase {
  const char* name;
  const char* zoo;
  ParamMap params;
  std::vector<int64_t> input;
  const char* rank;
  double tolerance;  // relative; convolutions on a GPU multiply in TF32
};
std::ostream& operator<<(std::ostream& out, const PopulationCase& c) { return out << c.name; }

class GpuPopulationTest : public ::testing::TestWithParam<PopulationCase> {};

// 70,000 rows a minibatch of all members: more than go at once.
TEST_P(GpuPopulationTest, NoiseMadeOnTheDeviceGivesTheProcessorsFitness) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const PopulationCase& c = GetParam();
  JobSpec spec = ZooJob(c.zoo, c.params);
  spec.strategy = {.name = "eggroll", .params = {{"sigma", "0.1"}, {"rank", c.rank}}};
  spec.local.solver = kEggrollSolver;
  spec.local.batch = 700;
  const FlatModel model = *InitialModel(spec);
  const TensorLayout update = *TensorLayout::Create({{.name = "fitness", .shape = {100}, .dtype = DType::kF32, .kind = TensorKind::kTrainable}});
  const Dataset data = Classes(1000, c.input, 3);  // a batch of 700 and one of 300
  TrainRequest request;
  request.spec = &spec;
  request.layout = &model.layout;
  request.update_layout = &update;
  request.model = model.bytes;
  request.seed = 3;
  request.noise_seed = 99;
  const auto cpu = (*MakeTorchLearner({.device = "cpu"}))->Train(request, &data);
  const std::unique_ptr<Learner> learner = OnGpu();
  const auto gpu = learner->Train(request, &data);
  const auto again = learner->Train(request, &data);
  ASSERT_THAT(cpu, IsOk());
  ASSERT_THAT(gpu, IsOk());
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(gpu->update == again->update);
  const std::vector<float> expected = Floats<float>(cpu->update, 100), got = Floats<float>(gpu->update, 100);
  double spread = 0;
  for (size_t i = 0; i < 100; ++i) {
    EXPECT_NEAR(got[i], expected[i], c.tolerance * std::abs(expected[i])) << "member " << i;
    spread = std::max(spread, static_cast<double>(std::abs(expected[i] - expected[0])));
  }
  EXPECT_GT(spread, 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Models, GpuPopulationTest,
                         ::testing::Values(PopulationCase{"dense", "mlp", {{"input", "40"}, {"hidden", "20x9"}, {"classes", "3"}}, {40}, "3", 2e-5},
                                           PopulationCase{"linear", "linear", {{"input", "1x8x8"}, {"classes", "3"}}, {1, 8, 8}, "1", 2e-5},
                                           PopulationCase{"large_rank", "mlp", {{"input", "40"}, {"hidden", "20"}, {"classes", "3"}}, {40}, "40", 2e-5},
                                           PopulationCase{"images", "cnn4", {{"input", "3x16x16"}, {"classes", "3"}}, {3, 16, 16}, "2", 5e-3}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(GpuUpdateTest, TellsHowFullAndBusyTheDeviceIs) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const auto usage = OnGpu()->usage();
  if (!usage) GTEST_SKIP() << "the driver's management library tells nothing here";
  EXPECT_GT(usage->memory_total_bytes, 0U);
  EXPECT_LE(usage->memory_used_bytes, usage->memory_total_bytes);
  EXPECT_FALSE(usage->id.empty());
}

}  // namespace
}  // namespace tributary::client
