// Clients side by side against the same clients one after the other, for every chain model; on the GPU too (label gpu).
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

std::unique_ptr<Learner> Cohorts(size_t cohort = 64) {
  auto learner = MakeTorchLearner({.device = "cpu", .threads = 1, .cohort = cohort});
  EXPECT_THAT(learner, IsOk());
  return *std::move(learner);
}

// Shards of one data set, of these sizes one after the other.
std::vector<Dataset> Shards(const Dataset& all, const std::vector<size_t>& sizes) {
  std::vector<Dataset> shards;
  size_t first = 0;
  for (const size_t size : sizes) {
    shards.push_back({.all = all.all, .indices = {}});
    for (size_t i = 0; i < size; ++i) shards.back().indices.push_back(static_cast<uint32_t>((first + i) % all.count()));
    first += size;
  }
  return shards;
}

std::vector<CohortMember> MembersOf(const JobSpec& spec, const FlatModel& model, const std::vector<Dataset>& shards) {
  std::vector<CohortMember> members;
  for (size_t i = 0; i < shards.size(); ++i) {
    members.push_back({RequestFor(spec, model, 100 + i), &shards[i]});
    members.back().request.shard = static_cast<int64_t>(i);
  }
  return members;
}

template <typename T>
double LargestDifference(const TensorLayout& layout, std::span<const std::byte> a, std::span<const std::byte> b) {
  double largest = 0;
  const std::vector<T> x = Floats<T>(a, layout.float_count()), y = Floats<T>(b, layout.float_count());
  for (size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
  return largest;
}

template <typename T>
void ExpectAsOneByOne(const JobSpec& spec, const FlatModel& model, const std::vector<Dataset>& shards, double tolerance) {
  const std::vector<CohortMember> members = MembersOf(spec, model, shards);
  const std::vector<absl::StatusOr<TrainResult>> together = Cohorts()->TrainCohort(members);
  ASSERT_EQ(together.size(), members.size());
  const auto alone = CpuLearner();
  double moved = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    ASSERT_THAT(together[i], IsOk());
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, alone->Train(members[i].request, members[i].data));
    ASSERT_EQ(together[i]->update.size(), expected.update.size());
    EXPECT_LE(LargestDifference<T>(model.layout, together[i]->update, expected.update), tolerance) << "client " << i;
    EXPECT_EQ(together[i]->examples, expected.examples);
    EXPECT_EQ(together[i]->weight, expected.weight);
    EXPECT_EQ(together[i]->scalars, expected.scalars);
    EXPECT_EQ(together[i]->metrics.at("train_steps"), expected.metrics.at("train_steps"));
    EXPECT_NEAR(together[i]->metrics.at("train_loss"), expected.metrics.at("train_loss"), tolerance * 10);
    const std::vector<std::byte> zero(expected.update.size());
    moved = std::max(moved, LargestDifference<T>(model.layout, expected.update, zero));
  }
  EXPECT_GT(moved, 1000 * tolerance) << "the comparison would see nothing";
}

struct ChainCase {
  const char* zoo;
  ParamMap params;
  std::vector<int64_t> input;
};
std::ostream& operator<<(std::ostream& out, const ChainCase& entry) { return out << entry.zoo; }

class CohortModelTest : public ::testing::TestWithParam<ChainCase> {
 protected:
  JobSpec Job(DType dtype) const {
    JobSpec spec = ZooJob(GetParam().zoo, GetParam().params);
    spec.dtype = dtype;
    spec.local.epochs = 2;
    spec.local.batch = 4;
    spec.local.lr = 0.1;
    return spec;
  }
  // Rests of two and of one, fewer examples than a batch, one example: 6 to 1 steps.
  std::vector<Dataset> Unequal() const { return Shards(Classes(40, GetParam().input, 3), {10, 9, 3, 12, 1, 4}); }
};

TEST_P(CohortModelTest, TrainsClientsOfUnequalShardsAsIfAloneInDouble) {
  const JobSpec spec = Job(DType::kF64);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  // Sums of at most some thousand products in double, over at most six steps.
  ExpectAsOneByOne<double>(spec, model, Unequal(), 1e-11);
}

TEST_P(CohortModelTest, TrainsThemAsIfAloneInSinglePrecision) {
  const JobSpec spec = Job(DType::kF32);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  ExpectAsOneByOne<float>(spec, model, Unequal(), 1e-5);
}

TEST_P(CohortModelTest, KeepsEachClientsMomentumDecayStepsAndRate) {
  JobSpec spec = Job(DType::kF64);
  spec.local.momentum = 0.9;
  spec.local.weight_decay = 0.01;
  spec.local.client_steps = {3, 40, 1, 5, 2, 33};  // over one recorded part
  spec.local.steps = 3;
  spec.local.client_lr = {0.01, 0.002, 0.01, 0.02, 0.05, 0.003};
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  ExpectAsOneByOne<double>(spec, model, Unequal(), 1e-10);
}

INSTANTIATE_TEST_SUITE_P(Chains, CohortModelTest,
                         ::testing::Values(ChainCase{"linear", {{"input", "5"}, {"classes", "3"}}, {5}},
                                           ChainCase{"mlp", {{"input", "7"}, {"classes", "3"}, {"hidden", "9x6"}}, {7}},
                                           ChainCase{"cnn", {{"input", "1x8x10"}, {"classes", "3"}, {"width", "3"}, {"hidden", "5"}}, {1, 8, 10}},
                                           ChainCase{"cnn4", {{"input", "3x16x16"}, {"classes", "3"}, {"width", "2"}, {"hidden", "6"}}, {3, 16, 16}}),
                         [](const auto& info) { return std::string(info.param.zoo); });

JobSpec CohortMlp() {
  JobSpec spec = ZooJob("mlp", {{"input", "5"}, {"classes", "3"}, {"hidden", "8"}});
  spec.dtype = DType::kF64;
  spec.local.batch = 4;
  spec.local.lr = 0.1;
  return spec;
}

TEST(CohortTest, FitsRegressionTargets) {
  JobSpec spec = ZooJob("linear", {{"input", "2"}, {"classes", "1"}});
  spec.dtype = DType::kF64;
  spec.local.batch = 3;
  auto all = std::make_shared<Examples>();
  all->example_shape = {2};
  CounterRandom random(5);
  for (int i = 0; i < 30; ++i) {
    all->x.insert(all->x.end(), {static_cast<float>(random.Normal()), static_cast<float>(random.Normal())});
    all->targets.push_back(static_cast<float>(3 * random.Normal()));
  }
  Dataset data{.all = all, .indices = {}};
  for (uint32_t i = 0; i < 30; ++i) data.indices.push_back(i);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  ExpectAsOneByOne<double>(spec, model, Shards(data, {7, 12, 2}), 1e-12);
}

TEST(CohortTest, ServesLargerAndSmallerCohortsOneAfterTheOther) {
  const JobSpec spec = CohortMlp();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const std::vector<Dataset> shards = Shards(Classes(60, {5}, 3), {8, 8, 8, 8, 8, 8, 8});
  const auto learner = Cohorts();
  const auto alone = CpuLearner();
  for (const size_t count : {4U, 7U, 5U, 2U, 7U}) {
    const std::vector<Dataset> some(shards.begin(), shards.begin() + static_cast<std::ptrdiff_t>(count));
    const std::vector<CohortMember> members = MembersOf(spec, model, some);
    const auto together = learner->TrainCohort(members);
    for (size_t i = 0; i < count; ++i) {
      ASSERT_THAT(together[i], IsOk());
      TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, alone->Train(members[i].request, members[i].data));
      EXPECT_LE(LargestDifference<double>(model.layout, together[i]->update, expected.update), 1e-12) << count << " clients, client " << i;
    }
  }
}

TEST(CohortTest, BeginsFromEachClientsOwnModel) {
  const JobSpec spec = CohortMlp();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  JobSpec other_seed = spec;
  other_seed.seed = 77;
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel other, InitialModel(other_seed));
  const std::vector<Dataset> shards = Shards(Classes(30, {5}, 3), {4, 12, 8});
  std::vector<CohortMember> members = MembersOf(spec, model, shards);
  members[1].request.model = other.bytes;
  const auto together = Cohorts()->TrainCohort(members);
  const auto alone = CpuLearner();
  for (size_t i = 0; i < members.size(); ++i) {
    ASSERT_THAT(together[i], IsOk());
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, alone->Train(members[i].request, members[i].data));
    EXPECT_LE(LargestDifference<double>(model.layout, together[i]->update, expected.update), 1e-12) << "client " << i;
  }
}

TEST(CohortTest, AnErrorOfOneClientTouchesNoOther) {
  JobSpec spec = CohortMlp();
  spec.local.client_lr = {0.1, 1e200, 0.1, 0.1};
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const Dataset all = Classes(40, {5}, 4);  // labels 0 to 3, where the model has three outputs
  std::vector<Dataset> shards(4, Dataset{.all = all.all, .indices = {}});
  for (uint32_t i = 0; i < 40; ++i) {
    if (all.all->labels[i] < 3) shards[i % 2 == 0 ? 0 : 1].indices.push_back(i);
    if (all.all->labels[i] < 3) shards[3].indices.push_back(i);
    shards[2].indices.push_back(i);
  }
  const std::vector<CohortMember> members = MembersOf(spec, model, shards);
  const auto together = Cohorts()->TrainCohort(members);
  const auto alone = CpuLearner();
  EXPECT_THAT(together[1], StatusIs(StatusCode::kInternal, ::testing::ContainsRegex("the loss is .* at step [0-9]+ of|not finite after")));
  EXPECT_THAT(together[2], StatusIs(StatusCode::kInvalidArgument, HasSubstr("has label 3")));
  for (const size_t i : {0U, 3U}) {
    ASSERT_THAT(together[i], IsOk());
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, alone->Train(members[i].request, members[i].data));
    EXPECT_LE(LargestDifference<double>(model.layout, together[i]->update, expected.update), 1e-12);
  }
}

TEST(CohortTest, AClientThatIsStoppedLeavesTheOthersToTheEnd) {
  const JobSpec spec = CohortMlp();
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const std::vector<Dataset> shards = Shards(Classes(40, {5}, 3), {20, 20});
  std::vector<CohortMember> members = MembersOf(spec, model, shards);
  float seen = 0;
  members[0].request.progress = [](float done) { return done < 0.5F; };
  members[1].request.progress = [&](float done) {
    seen = done;
    return true;
  };
  const auto together = Cohorts()->TrainCohort(members);
  EXPECT_THAT(together[0], StatusIs(StatusCode::kCancelled, HasSubstr("stopped")));
  EXPECT_THAT(together[1], IsOk());
  EXPECT_EQ(seen, 1.0F);
}

// What cannot stand side by side is trained one after the other, by the same code: to the bit.
void ExpectExactly(const JobSpec& spec, const Dataset& data) {
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, InitialModel(spec));
  const std::vector<Dataset> shards = Shards(data, {3, 4});
  const std::vector<CohortMember> members = MembersOf(spec, model, shards);
  const auto together = Cohorts()->TrainCohort(members);
  const auto alone = CpuLearner();
  for (size_t i = 0; i < members.size(); ++i) {
    ASSERT_THAT(together[i], IsOk());
    TRIB_ASSERT_OK_AND_ASSIGN(const TrainResult expected, alone->Train(members[i].request, members[i].data));
    EXPECT_EQ(together[i]->update, expected.update);
  }
}

TEST(CohortTest, TrainsOtherModelsOneAfterTheOther) {
  JobSpec spec = ZooJob("resnet18", {{"input", "3x32x32"}, {"classes", "3"}, {"stem", "small"}});
  spec.local.steps = 1;
  ExpectExactly(spec, Classes(8, {3, 32, 32}, 3));
}

TEST(CohortTest, TrainsByOtherRulesOneAfterTheOther) {
  JobSpec spec = CohortMlp();
  spec.strategy = {.name = "fedprox", .params = {{"mu", "0.1"}}};
  ExpectExactly(spec, Classes(8, {5}, 3));
}

TEST(CohortTest, TellsHowManyItWants) {
  EXPECT_EQ(CpuLearner()->cohort_size(), 1U);
  EXPECT_EQ(Cohorts(12)->cohort_size(), 12U);
}

}  // namespace
}  // namespace tributary::client
