// Jobs whose model is adapters: what of it travels, what the server makes of it, over restarts and over several workers.
#include <gmock/gmock.h>

#include <cstring>

#include "aggregator/core/aggregate.h"
#include "common/adapter_layout.h"
#include "common/digest.h"
#include "common/live_triplets.h"
#include "tests/integration/coordinator/federation_fixture.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr char kA[] = "base_model.model.fc.lora_A.weight";
constexpr char kB[] = "base_model.model.fc.lora_B.weight";
constexpr char kR[] = "base_model.model.fc.lora_R.weight";
constexpr char kResidual[] = "base_model.model.fc.base_layer.residual";

class AdapterJobsTest : public FederationTest {
 protected:
  std::string SubmitAdapters(AdapterMode mode, int64_t in, int64_t out, int64_t rank, int versions, int cohort = 2) {
    Shape(mode, {.layer = "fc", .in = in, .out = out, .rank = rank});
    return Submit(fmt::format("strategy: {{name: fedavg, adapters: {}}}", AdapterModeName(mode)), cohort, versions);
  }
  void Shape(AdapterMode mode, const AdapterShape& shape) {
    mode_ = mode;
    std::vector<TensorSpec> specs;
    for (AdapterTensor& tensor : AdapterTensors(mode, shape, DType::kF32)) specs.push_back(std::move(tensor.spec));
    absl::StatusOr<TensorLayout> layout = TensorLayout::Create(std::move(specs));
    EXPECT_THAT(layout, IsOk());
    layout_ = *std::move(layout);
  }

  Upload Change(const TestClient& client, const v1::TrainTask& task, const std::vector<float>& values, double weight = 1, Scalars scalars = {}) {
    const TensorLayout travelling = *AdapterUpdateLayout(mode_, layout_);
    EXPECT_EQ(values.size(), travelling.float_count());
    const auto bytes = std::as_bytes(std::span(values));
    Upload upload = UploadOf(client, task, travelling, {bytes.begin(), bytes.end()}, weight);
    upload.header.scalars = std::move(scalars);
    return upload;
  }
  Upload Answer(TestClient& client, const std::vector<float>& values, double weight = 1, Scalars scalars = {}) {
    Upload upload = Change(client, AwaitTask(client), values, weight, std::move(scalars));
    EXPECT_THAT(Send(upload), IsOk());
    return upload;
  }
  void AwaitVersion(const std::string& job, uint64_t version) {
    EXPECT_TRUE(Until([&] { return coordinator_->GetJob(job)->version() >= version; })) << coordinator_->GetJob(job)->DebugString();
  }
  std::vector<float> Values(const std::string& job, const std::string& name, uint64_t version) {
    std::vector<float> values;
    for (size_t i = 0; i < layout_.Find(name)->elements; ++i) values.push_back(Value(job, name, i, version));
    return values;
  }
  double Measured(const std::string& job, uint64_t version, const std::string& name = "adapter_error") {
    v1::GetVersionRequest request;
    request.set_job(job);
    request.set_version(version);
    return coordinator_->GetVersion(request)->measured().at(name);
  }

  AdapterMode mode_ = AdapterMode::kNone;
};

TEST_F(AdapterJobsTest, FedExFoldsWhatTheMeansLoseIntoTheResidualOverARestart) {
  options_.journal_every = absl::ZeroDuration();
  Stop();
  Start();
  const std::string job = SubmitAdapters(AdapterMode::kFedEx, /*in=*/3, /*out=*/2, /*rank=*/1, /*versions=*/2);
  TestClient a = Attach("a"), b = Attach("b");
  const Upload first = Answer(a, {1, 0, 0, 1, 0}, /*weight=*/1);  // A, then B
  EXPECT_TRUE(Until([&] { return Query(first).state() == v1::UPDATE_STATE_JOURNALED; }));
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  EXPECT_EQ(Query(first).state(), v1::UPDATE_STATE_JOURNALED);
  Answer(b, {0, 1, 0, 0, 1}, /*weight=*/3);
  AwaitVersion(job, 1);
  EXPECT_THAT(Values(job, kA, 1), ElementsAre(.25f, .75f, 0));
  EXPECT_THAT(Values(job, kB, 1), ElementsAre(.25f, .75f));
  // ¼·e₁e₁ᵀ + ¾·e₂e₂ᵀ less B̄·Ā
  EXPECT_THAT(Values(job, kResidual, 1), ElementsAre(.1875f, -.1875f, 0, -.1875f, .1875f, 0));
  EXPECT_EQ(Measured(job, 1), 0);
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  Answer(a, {0, 0, 0, 0, 0});
  Answer(b, {0, 0, 0, 0, 0});
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(Values(job, kResidual, 2), Values(job, kResidual, 1));
}

TEST_F(AdapterJobsTest, FedItSaysHowFarItIsOff) {
  const std::string job = SubmitAdapters(AdapterMode::kFedIt, 3, 2, 1, /*versions=*/1);
  TestClient a = Attach("a"), b = Attach("b");
  Answer(a, {1, 0, 0, 1, 0});
  Answer(b, {0, 1, 0, 0, 1});
  AwaitState(job, v1::JOB_STATE_DONE);
  // ½·I against ¼·J: each of four entries is off by ¼, and ‖½·I‖ = ½·√2.
  EXPECT_NEAR(Measured(job, 1), 0.5 / std::sqrt(0.5), 1e-12);
  EXPECT_EQ(coordinator_->GetJob(job)->rounds(0).measured().at("adapter_error"), Measured(job, 1));
}

TEST_F(AdapterJobsTest, RoLoraTakesTheFactorWhoseTurnItIsAndNamesTheOther) {
  const std::string job = SubmitAdapters(AdapterMode::kRoLora, /*in=*/3, /*out=*/2, /*rank=*/1, /*versions=*/2, /*cohort=*/1);
  TestClient a = Attach("a");
  const v1::TrainTask task = AwaitTask(a);
  EXPECT_THAT(Send(Change(a, task, {1, 2, 0}, 1, {{"phase", 0}})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("wrong_phase: version 1 moves B; got the change of A")));
  EXPECT_EQ(coordinator_->GetJob(job)->updates_rejected().at("wrong_phase"), 1u);
  EXPECT_THAT(Send(Change(a, task, {1, 2, 0}, 1)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'phase' is missing")));
  EXPECT_THAT(Send(Change(a, task, {1, 2, 0}, 1, {{"phase", 1}})), IsOk());
  AwaitVersion(job, 1);
  EXPECT_THAT(Values(job, kB, 1), ElementsAre(1, 2));
  EXPECT_THAT(Values(job, kA, 1), ElementsAre(0, 0, 0));
  Stop();
  Start();
  a = Attach("a");
  const v1::TrainTask next = AwaitTask(a);
  EXPECT_THAT(Send(Change(a, next, {9, 9, 0}, 1, {{"phase", 1}})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version 2 moves A; got the change of B")));
  EXPECT_THAT(Send(Change(a, next, {4, 5, 6}, 1, {{"phase", 0}})), IsOk());
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_THAT(Values(job, kB, 2), ElementsAre(1, 2));
  EXPECT_THAT(Values(job, kA, 2), ElementsAre(4, 5, 6));
}

TEST_F(AdapterJobsTest, TheServerTakesTripletsAwayOverARestart) {
  // Two triplets; b(1) = int(1 + (1/2)³) = 1; version 2 fixes the pattern; version 3 obeys it.
  Shape(AdapterMode::kFedIt, {.layer = "fc", .in = 1, .out = 1, .rank = 2, .triplets = true});
  const std::string job = Submit("strategy: {name: fedavg, adapters: fedit}", /*cohort=*/2, /*versions=*/3,
                                 "{zoo: linear, adapter: {kind: adalora, rank: 2, target_rank: 1, final_versions: 1, targets: [fc]}}");
  const std::string prefix = "base_model.model.fc.lora_";
  TestClient a = Attach("a"), b = Attach("b");
  // A, E, B, importance.
  Answer(a, {1, 1, 1, 2, 1, 1, 5, 1}, /*weight=*/1);
  Answer(b, {1, 1, 3, 4, 1, 1, 1, 2}, /*weight=*/3);
  AwaitVersion(job, 1);
  EXPECT_THAT(Values(job, prefix + "importance", 1), ElementsAre(2, 1.75f));
  EXPECT_THAT(Values(job, prefix + "E", 1), ElementsAre(2.5f, 0));
  EXPECT_EQ(Measured(job, 1, "adapter_triplets"), 1);
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  Answer(a, {0, 0, 0, 1, 0, 0, 0, 1});
  Answer(b, {0, 0, 0, 1, 0, 0, 0, 1});
  AwaitVersion(job, 2);
  EXPECT_THAT(Values(job, prefix + "importance", 2), ElementsAre(2, 2.75f));
  EXPECT_THAT(Values(job, prefix + "E", 2), ElementsAre(0, 1));
  EXPECT_THAT(Values(job, prefix + "mask", 2), ElementsAre(0, 1));
  Stop();
  Start();
  a = Attach("a");
  b = Attach("b");
  Answer(a, {0, 0, 9, 1, 0, 0, 9, 0});  // what is out stays out, whatever a client says
  Answer(b, {0, 0, 9, 1, 0, 0, 9, 0});
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_THAT(Values(job, prefix + "E", 3), ElementsAre(0, 2));
  EXPECT_THAT(Values(job, prefix + "mask", 3), ElementsAre(0, 1));
}

// The core's step over updates of all triplets, with zeros for those that are out, gives the same bits.
TEST_F(AdapterJobsTest, WithoutRegrowthOnlyTripletsThatAreInTravelOverARestartWithAJournalledPartial) {
  options_.journal_every = absl::ZeroDuration();
  Stop();
  Start();
  Shape(AdapterMode::kFedEx, {.layer = "fc", .in = 3, .out = 2, .rank = 3, .triplets = true});
  const std::string yaml = "{zoo: linear, adapter: {kind: adalora, rank: 3, target_rank: 1, final_versions: 1, regrow: false, targets: [fc]}}";
  v1::SubmitHeader header;
  header.set_spec_yaml(fmt::format("name: test\nmodel: {}\nstrategy: {{name: fedavg, adapters: fedex}}\ncohort: {{size: 2}}\nstop: {{versions: 3}}\n", yaml));
  TRIB_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(header.spec_yaml(), "job"));
  std::vector<float> initial(layout_.float_count());
  for (size_t i = 0; i < initial.size(); ++i) initial[i] = 0.5f - 0.07f * static_cast<float>(i % 13);
  const AdapterPair pair = FindAdapters(mode_, layout_)->front();
  for (size_t l = 0; l < 3; ++l) {
    initial[pair.mask + l] = 1;
    initial[pair.importance + l] = 0;
  }
  const auto initial_bytes = std::as_bytes(std::span(initial));
  const std::string tensors = *SerializeSafetensors(layout_, std::vector<std::byte>(initial_bytes.begin(), initial_bytes.end()));
  header.set_tensors_bytes(tensors.size());
  TRIB_ASSERT_OK_AND_ASSIGN(const v1::SubmitJobResponse submitted, coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""));
  const std::string& job = submitted.job();
  TRIB_ASSERT_OK_AND_ASSIGN(const auto live, LiveTriplets::Of(spec, layout_));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto strategy, StrategyOf(spec));
  const auto model_of = [&](uint64_t version) {
    std::vector<float> model;
    for (const PlacedTensor& tensor : layout_.tensors()) {
      const std::vector<float> values = Values(job, tensor.spec.name, version);
      model.insert(model.end(), values.begin(), values.end());
    }
    const auto bytes = std::as_bytes(std::span(model));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  // Of triplet l all that changes is (l + 1)·times.
  const auto update_of = [&](const std::vector<float>& mask, float times) {
    std::vector<float> all;
    for (const size_t per_row : {3, 1}) {
      for (size_t l = 0; l < 3; ++l) all.insert(all.end(), per_row, mask[l] * static_cast<float>(l + 1) * times);
    }
    for (size_t row = 0; row < 3; ++row) {  // B's two, and the importance
      for (size_t l = 0; l < 3; ++l) all.push_back(mask[l] * static_cast<float>(l + 1) * times);
    }
    const auto bytes = std::as_bytes(std::span(all));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  // b(1) = int(1 + 2·(1/2)³) = 1 of 3; the pattern is fixed with version 2.
  const std::vector<std::vector<float>> masks = {{1, 1, 1}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
  TestClient a = Attach("a"), b = Attach("b");
  for (uint64_t version = 0; version < 3; ++version) {
    const std::vector<std::byte> base = model_of(version);
    const size_t expected = 4 * (3 + 2 + 2) * (version == 0 ? 3 : 1);
    EXPECT_EQ(live->UpdateBytes(base), expected);
    Aggregate aggregate(*strategy, layout_, Arithmetic::kFloat64, 2);
    std::vector<RoundContributor> contributors;
    const auto send = [&](TestClient& client, float times, double weight) {
      const v1::TrainTask task = AwaitTask(client);
      const std::vector<std::byte> padded = update_of(masks[version], times);
      if (version > 0) {
        EXPECT_THAT(Send(UploadOf(client, task, *AdapterUpdateLayout(mode_, layout_), padded, weight)),
                    StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(fmt::format("size: expected {} bytes, got {}", expected, padded.size()))));
      }
      const LargeBytes packed = live->Pack(base, padded);
      const Upload sent = UploadOf(client, task, *AdapterUpdateLayout(mode_, layout_), {packed.begin(), packed.end()}, weight);
      EXPECT_THAT(Send(sent), IsOk());
      contributors.push_back({.key = sent.header.key, .weight = weight, .examples = 1, .claimed = weight});
      EXPECT_THAT(aggregate.Fold(contributors.back(), padded), IsOk());
      return sent;
    };
    const Upload first = send(a, 0.3f, 1);
    EXPECT_TRUE(Until([&] { return Query(first).state() == v1::UPDATE_STATE_JOURNALED; }));
    Stop();
    Start();
    a = Attach("a");
    b = Attach("b");
    EXPECT_EQ(Query(first).state(), v1::UPDATE_STATE_JOURNALED);
    send(b, 0.7f, 3);
    AwaitVersion(job, version + 1);
    const std::vector<float> mask = Values(job, "base_model.model.fc.lora_mask", version + 1);
    EXPECT_EQ(mask, masks[version + 1]);
    MemoryState state;
    std::vector<std::byte> next(layout_.total_bytes());
    ASSERT_THAT(aggregate.Step({.facts = {.version = version + 1, .sum_weight = 4, .registered = 2, .contributors = contributors}, .previous = base, .base = {}}, &state, next), IsOk());
    EXPECT_EQ(model_of(version + 1), next) << "version " << version + 1;
  }
}

TEST_F(AdapterJobsTest, FrozenFactorsGoDownAndNeverUp) {
  // More than one block of what trains, and so more than one worker.
  const std::string job = SubmitAdapters(AdapterMode::kFedSb, /*in=*/40, /*out=*/30, /*rank=*/200, /*versions=*/1);
  TestClient a = Attach("a"), b = Attach("b");
  const Upload sent = Answer(a, std::vector<float>(40'000, 1), 1);
  Answer(b, std::vector<float>(40'000, 5), 3);
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_EQ(sent.bytes.size(), 160'000u);
  EXPECT_EQ(coordinator_->GetJob(job)->bytes_up(), 2 * 160'000u);
  for (const size_t i : {0, 17, 39'999}) EXPECT_EQ(Value(job, kR, i, 1), 4.0f);
  for (const size_t i : {0, 17, 7'999}) EXPECT_EQ(Value(job, kA, i, 1), 0.0f);
}

TEST_F(AdapterJobsTest, AModelThatIsNoneOfAdaptersIsRefused) {
  const std::string tensors = *SerializeSafetensors(layout_, std::vector<std::byte>(layout_.total_bytes()));
  v1::SubmitHeader header;
  header.set_spec_yaml("name: test\nmodel: {tensors: m.safetensors}\ncohort: {size: 2}\nstrategy: {name: fedavg, adapters: fedex}\n");
  header.set_tensors_bytes(tensors.size());
  EXPECT_THAT(coordinator_->SubmitJob(header, std::make_unique<MemorySource>(tensors), ""),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("strategy.adapters: tensor 'w': expected one of an adapter")));
}

}  // namespace
}  // namespace tributary::aggregator
