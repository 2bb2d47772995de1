// Jobs whose model has experts: their statistics go up with updates, what the root makes of them is committed with a version, survives a
// crash and goes down with the next tasks; experts are weighted by tokens in every shape of the workers' plan.
#include <gmock/gmock.h>

#include <cstring>

#include "common/expert_quantile.h"
#include "proto/moe_codec.h"
#include "tests/integration/coordinator/federation_fixture.h"

namespace tributary::aggregator {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr char kBias[] = "moe.gate.e_score_correction_bias";

class MoeJobsTest : public FederationTest {
 protected:
  // Two experts of more than a block each, what everybody uses, and the bias of the server.
  void SetUp() override {
    FederationTest::SetUp();
    std::vector<TensorSpec> specs = {{"embed", {100}, DType::kF32, TensorKind::kTrainable}};
    for (const char* expert : {"0", "1"}) specs.push_back({fmt::format("moe.experts.{}.w", expert), {kWeights}, DType::kF32, TensorKind::kTrainable});
    specs.push_back({"head", {100}, DType::kF32, TensorKind::kTrainable});
    specs.push_back({kBias, {2}, DType::kF32, TensorKind::kServerOwned});
    TRIB_ASSERT_OK_AND_ASSIGN(layout_, TensorLayout::Create(std::move(specs)));
    TRIB_ASSERT_OK_AND_ASSIGN(travelling_, WithGroups(layout_, {""}));
  }

  static constexpr char kAlf[] = "{name: alf, step: 0.5, scale_by_std: false}";
  absl::StatusOr<std::string> SubmitMoe(const std::string& rest, int versions, int cohort = 2, const std::string& router = kAlf) {
    const std::string tensors = *SerializeSafetensors(layout_, std::vector<std::byte>(layout_.total_bytes()));
    v1::SubmitHeader header;
    header.set_spec_yaml(fmt::format("name: test\nmodel: {{zoo: moe_mlp, params: {{router: {}, top_k: 1, aux: {{lbl: 0.1, "
                                     "lbl_scope: global, lbl_ema: 0.5}}}}}}\ncohort: {{size: {}}}\nstop: {{versions: {}}}\n{}\n", router, cohort, versions, rest));
    header.set_tensors_bytes(tensors.size());
    TRIB_ASSIGN_OR_RETURN(const v1::SubmitJobResponse response, coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""));
    return response.job();
  }

  static MoeStats Counts(int64_t zero, int64_t one) {
    return {{.counts = {zero, one}, .prob_sum = {static_cast<double>(zero), static_cast<double>(one)}, .square_sum = 1, .tokens = zero + one}};
  }
  // Of these tokens expert 0 has `margin` at each, expert 1 its negative.
  static MoeStats Margins(int64_t tokens, double margin) {
    MoeStats stats = Counts(margin > 0 ? tokens : 0, margin > 0 ? 0 : tokens);
    const MarginBins bins;
    stats[0].margins.resize(2 * bins.bins());
    stats[0].margins[bins.Bin(margin)] = stats[0].margins[bins.bins() + bins.Bin(-margin)] = tokens;
    return stats;
  }
  // Every element of the update is `value`.
  Upload Change(TestClient& client, const v1::TrainTask& task, float value, MoeStats moe, double weight) {
    const std::vector<float> values(travelling_.float_count(), value);
    const auto bytes = std::as_bytes(std::span(values));
    Upload upload = UploadOf(client, task, travelling_, {bytes.begin(), bytes.end()}, weight);
    upload.header.moe = std::move(moe);
    return upload;
  }
  void AwaitVersion(const std::string& job, uint64_t version) {
    EXPECT_TRUE(Until([&] { return coordinator_->GetJob(job)->version() >= version; })) << coordinator_->GetJob(job)->DebugString();
  }
  v1::VersionInfo Info(const std::string& job, uint64_t version) {
    v1::GetVersionRequest request;
    request.set_job(job);
    request.set_version(version);
    return *coordinator_->GetVersion(request);
  }
  std::vector<float> Bias(const std::string& job, uint64_t version) { return {Value(job, kBias, 0, version), Value(job, kBias, 1, version)}; }

  TensorLayout travelling_;
};

TEST_F(MoeJobsTest, LoadsAndBiasesAreCommittedSurviveACrashAndGoDownWithTheNextTasks) {
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string job, SubmitMoe("", /*versions=*/2));
  TestClient a = Attach("a"), b = Attach("b");
  const v1::TrainTask first = AwaitTask(a);
  EXPECT_FALSE(first.has_moe()) << "nothing has been counted";
  EXPECT_THAT(Send(Change(a, first, 1, Counts(30, 10), 1)), IsOk());
  EXPECT_THAT(Send(Change(b, AwaitTask(b), 1, Counts(60, 0), 1)), IsOk());
  AwaitVersion(job, 1);
  EXPECT_THAT(Bias(job, 1), ElementsAre(-0.5f, 0.5f));
  EXPECT_THAT(Info(job, 1).moe().layers(0).share(), ElementsAre(DoubleEq(.9), DoubleEq(.1)));
  EXPECT_EQ(Info(job, 1).moe().layers(0).tokens(), 100);
  EXPECT_NEAR(Info(job, 1).measured().at("moe.max_vio"), .8, 1e-12);
  EXPECT_EQ(Info(job, 1).contributors(0).moe().layers_size(), 0) << "kept for replay alone";
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  const v1::TrainTask second = AwaitTask(a);
  EXPECT_THAT(second.moe().layers(0).share(), ElementsAre(DoubleEq(.9), DoubleEq(.1)));
  EXPECT_THAT(Send(Change(a, second, 1, Counts(10, 30), 1)), IsOk());
  EXPECT_THAT(Send(Change(b, AwaitTask(b), 1, Counts(10, 30), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_THAT(Bias(job, 2), ElementsAre(0, 0)) << "expert 1 had too many this time";
  EXPECT_EQ(Info(job, 2).moe().step(), 2u);
  EXPECT_THAT(Info(job, 2).moe().layers(0).share(), ElementsAre(DoubleEq(.5 * .9 + .5 * .25), DoubleEq(.5 * .1 + .5 * .75)));
  EXPECT_EQ(Info(job, 2).measured().at("moe.specialisation"), 0) << "both load the experts alike";
  EXPECT_EQ(Value(job, "head", 7, 2), 2.0f);
}

TEST_F(MoeJobsTest, StatisticsThatLieAreRefusedByNameAndChangeNothing) {
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string job, SubmitMoe("strategy: {name: fedavg, expert_weights: tokens}", /*versions=*/1, /*cohort=*/1));
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  const auto refused = [&](MoeStats moe, const std::string& why) {
    EXPECT_THAT(Send(Change(a, task, 1, std::move(moe), 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused({}, "needs the statistics of 1 layers, got none");
  refused({Counts(1, 1)[0], Counts(1, 1)[0]}, "statistics of 1 layers, got 2");
  MoeStats three = Counts(1, 1);
  three[0].counts.push_back(0);
  three[0].prob_sum.push_back(0);
  refused(three, "layer 0: expected 2 experts, got 3");
  MoeStats many = Counts(5, 5);
  many[0].tokens = 9;
  refused(many, "9 tokens with at most 1 experts each make 9 pairs at most, got 10");
  EXPECT_EQ(coordinator_->GetJob(job)->updates_rejected().at("header"), 4u);
  EXPECT_EQ(coordinator_->GetJob(job)->version(), 0u);
  EXPECT_THAT(Send(Change(a, task, 1, Counts(5, 5), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Value(job, "moe.experts.1.w", 3, 1), 1.0f);
}

// The second update comes after a crash; the first one's margins are in the journalled partial's row.
TEST_F(MoeJobsTest, AQuantileOfAllClientsMarginsMovesTheBiasOverARestart) {
  options_.journal_every = absl::ZeroDuration();
  Stop();
  Start();
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string job, SubmitMoe("record: true", /*versions=*/2, /*cohort=*/2, "{name: quantile, scope: global, rate: 0.5}"));
  TestClient a = Attach("a"), b = Attach("b");
  const v1::TrainTask task = AwaitTask(a);
  MoeStats few = Margins(40, 0.3);
  ++few[0].margins[0];
  EXPECT_THAT(Send(Change(a, task, 1, few, 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("margins of expert 0: expected those of 40 tokens, got 41")));
  EXPECT_THAT(Send(Change(a, task, 1, Counts(40, 0), 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 64 counts of margins")));
  const Upload first = Change(a, task, 1, Margins(40, 0.3), 1);
  EXPECT_THAT(Send(first), IsOk());
  EXPECT_TRUE(Until([&] { return Query(first).state() == v1::UPDATE_STATE_JOURNALED; }));
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  EXPECT_THAT(Send(Change(b, AwaitTask(b), 1, Margins(20, -0.7), 3)), IsOk());
  AwaitVersion(job, 1);
  // Of 60 tokens the 31st largest margin. Expert 0: 40 in [¼, ½); expert 1: 20 in [½, 1), and 40 in (−½, −¼], of which it is the 11th.
  const double zero = 0.5 - 0.25 * 30.5 / 40, one = -0.25 - 0.25 * 10.5 / 40;
  EXPECT_THAT(Bias(job, 1), ElementsAre(::testing::FloatNear(static_cast<float>(-0.5 * zero), 1e-6f), ::testing::FloatNear(static_cast<float>(-0.5 * one), 1e-6f)));
  EXPECT_EQ(Info(job, 1).contributors(0).moe().layers(0).margins_size(), 64) << "a record can be folded again";
  // Nobody's tokens: the bias stays.
  EXPECT_THAT(Send(Change(a, AwaitTask(a), 1, Margins(0, 0.3), 1)), IsOk());
  EXPECT_THAT(Send(Change(b, AwaitTask(b), 1, Margins(0, 0.3), 1)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Bias(job, 2), Bias(job, 1));
}

class ExpertWeightsShapeTest : public MoeJobsTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(ExpertWeightsShapeTest, ExpertsAreWeightedByTokensOverARestartWithAJournalledPartial) {
  options_.journal_every = absl::ZeroDuration();
  Stop();
  Start();
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string job, SubmitMoe(fmt::format("strategy: {{name: fedavg, expert_weights: tokens}}\n{}", GetParam()), /*versions=*/1));
  TestClient a = Attach("a"), b = Attach("b");
  // Weights 1 and 3; of expert 0: r = 2 and ½, of expert 1: r = 0 and 3/2.
  const Upload first = Change(a, AwaitTask(a), 8, Counts(40, 0), 1);
  EXPECT_THAT(Send(first), IsOk());
  EXPECT_TRUE(Until([&] { return Query(first).state() == v1::UPDATE_STATE_JOURNALED; }));
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  EXPECT_THAT(Send(Change(b, AwaitTask(b), 1, Counts(10, 30), 3)), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  for (const size_t i : {size_t{0}, size_t{99}}) {
    EXPECT_FLOAT_EQ(Value(job, "embed", i, 1), (1 * 8 + 3 * 1) / 4.0f);
    EXPECT_FLOAT_EQ(Value(job, "head", i, 1), (1 * 8 + 3 * 1) / 4.0f);
  }
  for (const size_t i : {size_t{0}, size_t{17'000}, static_cast<size_t>(kWeights - 1)}) {
    EXPECT_FLOAT_EQ(Value(job, "moe.experts.0.w", i, 1), (1 * 2 * 8 + 3 * .5f * 1) / (1 * 2 + 3 * .5f)) << i;
    EXPECT_EQ(Value(job, "moe.experts.1.w", i, 1), 1.0f) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ExpertWeightsShapeTest,
                         ::testing::Values("hierarchy: {shape: flat}", "hierarchy: {shape: shard}", "hierarchy: {shape: tree}", "reproducible: true"));

TEST_F(MoeJobsTest, AModelWithoutExpertsTakesNoStatistics) {
  TRIB_ASSERT_OK_AND_ASSIGN(layout_, TensorLayout::Create({{"w", {10}, DType::kF32, TensorKind::kTrainable}}));
  travelling_ = layout_;
  Submit("", /*cohort=*/1);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  EXPECT_THAT(Send(Change(a, task, 1, Counts(1, 1), 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the job's model has no experts")));
  EXPECT_THAT(Send(Change(a, task, 1, {}, 1)), IsOk());
}

TEST_F(MoeJobsTest, APrivateJobSaysThatItCountsNothing) {
  const std::string tensors = *SerializeSafetensors(layout_, std::vector<std::byte>(layout_.total_bytes()));
  v1::SubmitHeader header;
  header.set_spec_yaml("name: test\nmodel: {zoo: moe_mlp, params: {top_k: 1}}\ncohort: {size: 2}\nstop: {versions: 1}\nstrategy: {name: fedavg, weighting: uniform}\n"
                       "privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5}\n");
  header.set_tensors_bytes(tensors.size());
  TRIB_ASSERT_OK_AND_ASSIGN(const v1::SubmitJobResponse response, coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""));
  EXPECT_THAT(response.warnings(), ::testing::Contains(HasSubstr("clients send no counts of their experts' tokens")));
}

}  // namespace
}  // namespace tributary::aggregator
