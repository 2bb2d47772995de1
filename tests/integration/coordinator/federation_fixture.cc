#include "tests/integration/coordinator/federation_fixture.h"

#include <stdlib.h>

#include <algorithm>
#include <cstring>

#include "common/digest.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {
constexpr absl::Duration kPatience = absl::Seconds(20);
}  // namespace

void RecordingSink::Send(v1::ServerMessage message) {
  absl::MutexLock lock(&mutex_);
  messages_.push_back(std::move(message));
}

void RecordingSink::Close(const absl::Status&) {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

std::optional<v1::ServerMessage> RecordingSink::Await(const std::function<bool(const v1::ServerMessage&)>& wanted, size_t* from) {
  std::optional<v1::ServerMessage> found;
  const auto look = [&] {
    if (found.has_value()) return true;  // a condition may be evaluated more than once
    for (; *from < messages_.size(); ++*from) {
      if (wanted(messages_[*from])) {
        found = messages_[(*from)++];
        return true;
      }
    }
    return false;
  };
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&look), kPatience);
  return found;
}

bool RecordingSink::AwaitClosed() {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&closed_), kPatience);
}

size_t RecordingSink::Count(const std::function<bool(const v1::ServerMessage&)>& wanted) {
  absl::MutexLock lock(&mutex_);
  return static_cast<size_t>(std::count_if(messages_.begin(), messages_.end(), wanted));
}

void FederationTest::SetUp() {
  std::string pattern = (std::filesystem::temp_directory_path() / "tributary-coordinator-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  dir_ = pattern;
  options_.store.dir = (dir_ / "store").string();
  options_.store.min_free_bytes = 1;
  options_.workers.worker_program = TRIBUTARY_WORKER;
  options_.workers.workers = 2;
  options_.pool_bytes = size_t{64} << 20;
  options_.poll = absl::Milliseconds(20);
  options_.journal_every = absl::Hours(1);
  TRIB_ASSERT_OK_AND_ASSIGN(layout_, TensorLayout::Create({{"w", {kWeights}, DType::kF32, TensorKind::kTrainable},
                                                           {"b", {3}, DType::kF32, TensorKind::kTrainable},
                                                           {"mean", {2}, DType::kF32, TensorKind::kBuffer},
                                                           {"seen", {1}, DType::kI64, TensorKind::kCounter}}));
  Start();
}

void FederationTest::TearDown() {
  coordinator_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

void FederationTest::Start() {
  absl::StatusOr<std::unique_ptr<Coordinator>> started = Coordinator::Start(options_, &clock_);
  ASSERT_THAT(started, testing::IsOk());
  coordinator_ = *std::move(started);
}

void FederationTest::Stop() { coordinator_.reset(); }

std::string FederationTest::Submit(const std::string& extra_yaml, int cohort, int versions, const std::string& model) {
  std::vector<std::byte> flat(layout_.total_bytes());
  absl::StatusOr<std::string> tensors = SerializeSafetensors(layout_, flat);
  EXPECT_THAT(tensors, testing::IsOk());
  v1::SubmitHeader header;
  header.set_spec_yaml(fmt::format("name: test\nmodel: {}\ncohort: {{size: {}}}\nstop: {{versions: {}}}\n{}", model, cohort, versions, extra_yaml));
  header.set_tensors_bytes(tensors->size());
  const absl::StatusOr<v1::SubmitJobResponse> response = coordinator_->SubmitJob(header, std::make_unique<MemorySource>(*std::move(tensors)), "");
  EXPECT_THAT(response, testing::IsOk());
  return response.ok() ? response->job() : "";
}

FederationTest::TestClient FederationTest::Attach(const std::string& name, const std::vector<v1::UpdateKey>& outbox, bool trains, bool evaluates) {
  TestClient client;
  client.name = name;
  client.sink = std::make_shared<RecordingSink>();
  EXPECT_THAT(coordinator_->Authenticate(name, name + "-secret-of-enough-length"), testing::IsOk());
  v1::Hello hello;
  hello.set_device("cpu");
  hello.set_trains(trains);
  hello.set_evaluates(evaluates);
  for (const v1::UpdateKey& key : outbox) *hello.add_outbox() = key;
  const absl::StatusOr<uint64_t> session = coordinator_->Attach(name, hello, client.sink);
  EXPECT_THAT(session, testing::IsOk());
  client.session = session.value_or(0);
  return client;
}

v1::TrainTask FederationTest::AwaitTask(TestClient& client) {
  const auto message = client.sink->Await([](const v1::ServerMessage& m) { return m.has_train(); }, &client.read);
  EXPECT_TRUE(message.has_value()) << client.name << " got no task";
  return message.has_value() ? message->train() : v1::TrainTask();
}

FederationTest::Upload FederationTest::MakeUpdate(const TestClient& client, const v1::TrainTask& task, float value, double weight, int64_t count) {
  std::vector<std::byte> bytes(layout_.total_bytes());
  for (size_t i = 0; i < layout_.float_count(); ++i) std::memcpy(bytes.data() + 4 * i, &value, 4);
  std::memcpy(bytes.data() + layout_.float_bytes(), &count, 8);
  return UploadOf(client, task, layout_, std::move(bytes), weight);
}

FederationTest::Upload FederationTest::UploadOf(const TestClient& client, const v1::TrainTask& task, const TensorLayout& layout, std::vector<std::byte> bytes, double weight) {
  Upload upload;
  upload.bytes = std::move(bytes);
  upload.header.key = {client.name, task.task(), RandomUpdateId()};
  upload.header.job = task.job();
  upload.header.version = task.version();
  upload.header.layout = layout.Fingerprint();
  upload.header.codec = "f32";
  upload.header.bytes = upload.bytes.size();
  upload.header.xxh3_128 = Xxh3Digest(upload.bytes);
  upload.header.weight = weight;
  upload.header.examples = 10;
  return upload;
}

absl::Status FederationTest::Send(const Upload& upload) {
  absl::Duration retry;
  TRIB_ASSIGN_OR_RETURN(UpdateAdmission admission, coordinator_->AdmitUpload(upload.header, &retry));
  if (admission.state == v1::UPDATE_STATE_EXPIRED || admission.state == v1::UPDATE_STATE_REJECTED) {
    return FailedPrecondition("{}", admission.reason);
  }
  if (admission.state != v1::UPDATE_STATE_PARTIAL) return absl::OkStatus();
  std::memcpy(admission.grant.object.payload().data(), upload.bytes.data(), upload.bytes.size());
  const ScanResult scan = Scan(std::span<const std::byte>(upload.bytes).first(admission.grant.float_bytes), admission.grant.dtype);
  tb_object_header& header = admission.grant.object.header();
  header.payload_bytes = upload.bytes.size();
  header.crc32c = Crc32c(upload.bytes);
  header.sum_squares = scan.sum_squares;
  header.update_hi = upload.header.key.update.hi;
  header.update_lo = upload.header.key.update.lo;
  if (!scan.finite) {  // as ingress does
    coordinator_->RejectUpdate(upload.header, "non_finite", "NaN or infinity");
    return InvalidArgument("NaN or infinity");
  }
  return coordinator_->AcceptUpdate(upload.header, std::move(admission.grant.object), scan);
}

v1::UpdateKey FederationTest::Key(const Upload& upload) { return KeyToProto(upload.header.job, upload.header.key.task, upload.header.key.update); }

v1::UpdateStatus FederationTest::Query(const Upload& upload) { return coordinator_->Query(upload.header.key.client, Key(upload)); }

bool FederationTest::Until(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(2));  // polls public reads; there is nothing to wait on
  }
  return true;
}

void FederationTest::AwaitState(const std::string& job, v1::JobState state) {
  EXPECT_TRUE(Until([&] {
    const absl::StatusOr<v1::Job> shown = coordinator_->GetJob(job);
    return shown.ok() && shown->state() == state;
  })) << coordinator_->GetJob(job).value_or(v1::Job()).DebugString();
}

float FederationTest::Value(const std::string& job, const std::string& name, size_t index, uint64_t version) {
  const absl::StatusOr<SharedBytes> model = coordinator_->Model("anyone", job, version);
  EXPECT_THAT(model, testing::IsOk());
  if (!model.ok()) return 0;
  float value = 0;
  std::memcpy(&value, model->bytes.data() + layout_.Find(name)->offset_bytes + 4 * index, 4);
  return value;
}

}  // namespace tributary::aggregator
