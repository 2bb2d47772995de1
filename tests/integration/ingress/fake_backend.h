// A backend that grants slots of a real pool and records what it is told, and a server with clients around it.
#pragma once

#include <absl/synchronization/mutex.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/client_unary_call.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "aggregator/ingress/server.h"
#include "aggregator/store/memfd.h"
#include "common/digest.h"
#include "proto/codec.h"
#include "proto/grpc_status.h"
#include "tests/support/status_matchers.h"
#include "tributary/v1/admin.grpc.pb.h"
#include "tributary/v1/federation.grpc.pb.h"

namespace tributary::aggregator {

inline const std::string kJob = "job-0a1b2c";
inline const std::string kLayout(64, 'a');

inline std::span<const std::byte> BytesOf(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

struct Accepted {
  UploadHeader header;
  tb_object_header object;
  std::string payload;
  ScanResult scan;
};

class FakeFederation final : public FederationBackend {
 public:
  explicit FakeFederation(size_t update_bytes, size_t slots) : update_bytes_(update_bytes) {
    pool_ = ObjectPool::Create({.pool_id = 1, .slot_payload_bytes = update_bytes, .pool_bytes = slots * (update_bytes + 8192), .domain = 1}).value();
  }

  absl::Status Authenticate(const std::string& client, const std::string& secret) override {
    absl::MutexLock lock(&mutex);
    if (!secrets_.emplace(client, secret).second && secrets_[client] != secret)
      return PermissionDenied("client '{}': another secret is bound to this id", client);
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Attach(const std::string& client, const v1::Hello& hello, std::shared_ptr<ControlStream> stream) override {
    v1::ServerMessage message;
    message.mutable_welcome()->set_heartbeat_interval_ms(1000);
    message.mutable_welcome()->mutable_outbox()->Reserve(hello.outbox_size());
    stream->Send(message);
    absl::MutexLock lock(&mutex);
    ++hellos;
    streams[client] = std::move(stream);
    return ++sessions_;
  }
  void OnMessage(uint64_t, const v1::ClientMessage& message) override {
    absl::MutexLock lock(&mutex);
    messages.push_back(message);
  }
  void Detach(uint64_t) override {
    absl::MutexLock lock(&mutex);
    ++detached;
  }

  absl::StatusOr<Blob> Model(const std::string&, const std::string& job, uint64_t version) override {
    absl::MutexLock lock(&mutex);
    if (job != kJob || version != 3) return NotFound("job '{}': no version {}", job, version);
    return Blob{BytesOf(*model), Sha256Hex(BytesOf(*model)), Xxh3Digest(BytesOf(*model)), model_memfd.fd.get(), model};
  }
  absl::StatusOr<Blob> Artifact(const std::string&, const std::string& job) override {
    return NotFound("job '{}': has no artifact", job);
  }
  void CountDownload(const std::string&, uint64_t bytes) override {
    absl::MutexLock lock(&mutex);
    downloaded += bytes;
  }

  absl::StatusOr<Admission> AdmitUpload(const UploadHeader& header, absl::Duration* retry) override {
    if (header.job != kJob) return NotFound("no job '{}'", header.job);
    if (header.key.task > 1000) return NotFound("job '{}': no task {}", header.job, header.key.task);
    if (header.version != 3) return FailedPrecondition("version {}: stale", header.version);
    if (header.layout != kLayout) return InvalidArgument("layout: another model's");
    if (header.codec != "f32") return InvalidArgument("codec: expected f32, got {}", header.codec);
    if (header.bytes != update_bytes_) return InvalidArgument("bytes: expected {}, got {}", update_bytes_, header.bytes);
    Admission admission;
    {
      absl::MutexLock lock(&mutex);
      for (const Accepted& entry : accepted) {
        if (entry.header.key != header.key) continue;
        admission.state = v1::UPDATE_STATE_ACCEPTED;
        return admission;
      }
    }
    auto object = pool_->Reserve(header.bytes);
    if (!object.ok()) {
      *retry = absl::Milliseconds(700);
      return object.status();
    }
    admission.state = v1::UPDATE_STATE_PARTIAL;
    admission.grant.object = *std::move(object);
    admission.grant.owner = pool_;
    admission.grant.encoding = encoding;
    admission.grant.float_bytes = encoding.codec != Codec::kPlain ? 0 : float_bytes.value_or(header.bytes);
    admission.grant.max_abs = 1000;
    return admission;
  }
  absl::Status AcceptUpdate(const UploadHeader& header, WritableObject object, const ScanResult& scan) override {
    Accepted entry{header, object.header(), {}, scan};
    entry.payload.assign(reinterpret_cast<const char*>(object.payload().data()), header.bytes);
    absl::MutexLock lock(&mutex);
    if (!accept_error.ok()) return accept_error;
    accepted.push_back(std::move(entry));
    return absl::OkStatus();
  }
  void RejectUpdate(const UploadHeader& header, const std::string& reason_code, const std::string&) override {
    absl::MutexLock lock(&mutex);
    rejected.emplace_back(header.key.client, reason_code);
  }
  v1::UpdateStatus Query(const std::string& client, const v1::UpdateKey& key) override {
    v1::UpdateStatus status;
    *status.mutable_key() = key;
    status.set_state(v1::UPDATE_STATE_UNKNOWN);
    absl::MutexLock lock(&mutex);
    for (const Accepted& entry : accepted) {
      if (entry.header.key.client == client && ToBytes(entry.header.key.update) == key.update_id())
        status.set_state(v1::UPDATE_STATE_ACCEPTED);
    }
    return status;
  }

  size_t used_slots() const { return pool_->used_slots(); }

  absl::Mutex mutex;
  std::vector<Accepted> accepted ABSL_GUARDED_BY(mutex);
  std::vector<std::pair<std::string, std::string>> rejected ABSL_GUARDED_BY(mutex);
  std::vector<v1::ClientMessage> messages ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::shared_ptr<ControlStream>> streams ABSL_GUARDED_BY(mutex);
  int hellos ABSL_GUARDED_BY(mutex) = 0;
  int detached ABSL_GUARDED_BY(mutex) = 0;
  uint64_t downloaded ABSL_GUARDED_BY(mutex) = 0;
  absl::Status accept_error ABSL_GUARDED_BY(mutex);
  std::shared_ptr<std::string> model = std::make_shared<std::string>();
  MappedMemfd model_memfd ABSL_GUARDED_BY(mutex);
  std::optional<size_t> float_bytes;
  UpdateEncoding encoding;

 private:
  const size_t update_bytes_;
  std::shared_ptr<ObjectPool> pool_;
  std::map<std::string, std::string> secrets_ ABSL_GUARDED_BY(mutex);
  uint64_t sessions_ ABSL_GUARDED_BY(mutex) = 0;
};

class FakeAdmin final : public AdminBackend {
 public:
  absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::SubmitHeader& header, std::unique_ptr<ByteSource> tensors_in, std::string artifact_in) override {
    absl::MutexLock lock(&mutex);
    spec = header.spec_yaml();
    tensors.clear();
    TRIB_RETURN_IF_ERROR(ForEachPiece(*tensors_in, 1000, [&](std::span<const std::byte> piece) {
      tensors.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      return absl::OkStatus();
    }));
    artifact = std::move(artifact_in);
    v1::SubmitJobResponse response;
    response.set_job(kJob);
    return response;
  }
  std::vector<v1::Job> ListJobs() override {
    absl::MutexLock lock(&mutex);
    return {job};
  }
  absl::StatusOr<v1::Job> GetJob(const std::string& id) override {
    if (id != kJob) return NotFound("no job '{}'", id);
    absl::MutexLock lock(&mutex);
    return job;
  }
  absl::StatusOr<v1::Job> CancelJob(const std::string& id, const std::string&) override { return GetJob(id); }
  absl::StatusOr<v1::Job> ResumeJob(const std::string&) override { return FailedPrecondition("job runs"); }
  absl::StatusOr<std::shared_ptr<void>> Watch(const std::string& id, std::function<void()> changed) override {
    if (id != kJob) return NotFound("no job '{}'", id);
    absl::MutexLock lock(&mutex);
    listener = std::move(changed);
    return std::make_shared<int>(0);
  }
  std::vector<v1::Client> ListClients(bool) override {
    v1::Client client;
    client.set_id("site-a");
    return {client};
  }
  v1::Node GetNode() override { return {}; }
  absl::StatusOr<std::vector<v1::VersionInfo>> ListVersions(const std::string& id) override {
    if (id != kJob) return NotFound("no job '{}'", id);
    return versions;
  }
  absl::StatusOr<v1::VersionInfo> GetVersion(const v1::GetVersionRequest&) override { return v1::VersionInfo(); }
  absl::StatusOr<std::string> ExportVersion(const v1::GetVersionRequest&) override { return exported; }

  absl::Mutex mutex;
  v1::Job job ABSL_GUARDED_BY(mutex);
  std::function<void()> listener ABSL_GUARDED_BY(mutex);
  std::string spec ABSL_GUARDED_BY(mutex);
  std::string tensors ABSL_GUARDED_BY(mutex);
  std::string artifact ABSL_GUARDED_BY(mutex);
  std::string exported;
  std::vector<v1::VersionInfo> versions;
};

inline std::string FloatBytes(size_t bytes, float first = 0.25f) {
  std::vector<float> values(bytes / 4);
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i % 97) * 0.01f;
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

// A server on port 0 and what a client does.
class IngressTest : public ::testing::Test {
 protected:
  static constexpr size_t kChunk = 4096;
  static constexpr size_t kUpdate = 10 * kChunk + 1000;

  void StartServer(size_t slots = 8, GrpcServerOptions options = {}, size_t update_bytes = kUpdate) {
    federation = std::make_unique<FakeFederation>(update_bytes, slots);
    if (options.chunk_bytes == GrpcServerOptions().chunk_bytes) options.chunk_bytes = kChunk;
    options.reaper_interval = absl::Milliseconds(5);
    options.clock = &clock;
    auto started = GrpcServer::Start(options, federation.get(), &admin);
    ASSERT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
    server->SetServing(true);
    channel = MakeChannel();
    stub = v1::Federation::NewStub(channel);
  }
  void TearDown() override {
    if (server != nullptr) server->Shutdown(absl::ZeroDuration());
    server.reset();
  }
  std::shared_ptr<grpc::Channel> MakeChannel() const {
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args.SetMaxReceiveMessageSize(-1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server->port()), grpc::InsecureChannelCredentials(), args);
  }
  static void Identify(grpc::ClientContext* context, const std::string& client) {
    context->AddMetadata("tributary-client", client);
    context->AddMetadata("tributary-secret", std::string(64, client.empty() ? '0' : 'a' + client.size() % 6));
  }

  static v1::BeginUploadRequest Header(const std::string& payload, uint64_t task = 1, UpdateId id = {1, 2}) {
    v1::BeginUploadRequest request;
    *request.mutable_key() = KeyToProto(kJob, task, id);
    request.set_version(3);
    request.set_layout(kLayout);
    request.set_codec("f32");
    request.set_bytes(payload.size());
    request.set_xxh3_128(Xxh3Digest(BytesOf(payload)));
    request.set_weight(10);
    request.set_examples(10);
    return request;
  }
  absl::StatusOr<v1::UpdateStatus> Begin(const v1::BeginUploadRequest& request, const std::string& client = "site-a",
                                         absl::Duration* retry = nullptr) {
    grpc::ClientContext context;
    Identify(&context, client);
    v1::UpdateStatus response;
    const grpc::Status status = stub->BeginUpload(&context, request, &response);
    if (retry != nullptr) {
      *retry = RetryDelayOf(status).value_or(absl::ZeroDuration());
      const auto& trailing = context.GetServerTrailingMetadata();
      const auto it = trailing.find(kRetryPushback);
      pushback_ms = it == trailing.end() ? "" : std::string(it->second.data(), it->second.size());
    }
    if (!status.ok()) return FromGrpc(status);
    return response;
  }
  static v1::DataChunk Chunk(uint64_t upload, const std::string& payload, uint64_t offset, size_t bytes) {
    v1::DataChunk chunk;
    chunk.set_upload_id(upload);
    chunk.set_offset(offset);
    chunk.set_bytes(payload.substr(offset, bytes));
    chunk.set_crc32c(Crc32c(BytesOf(chunk.bytes())));
    return chunk;
  }
  static std::vector<v1::DataChunk> Chunks(uint64_t upload, const std::string& payload, uint64_t from = 0, size_t step = kChunk) {
    std::vector<v1::DataChunk> chunks;
    for (uint64_t at = from; at < payload.size(); at += step) chunks.push_back(Chunk(upload, payload, at, std::min(step, payload.size() - at)));
    return chunks;
  }
  absl::StatusOr<v1::UpdateStatus> Push(const std::vector<v1::DataChunk>& chunks, const std::string& client = "site-a") {
    grpc::ClientContext context;
    Identify(&context, client);
    v1::UpdateStatus response;
    const auto writer = stub->PushUpdate(&context, &response);
    for (const auto& chunk : chunks) {
      if (!writer->Write(chunk)) break;
    }
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    if (!status.ok()) return FromGrpc(status);
    return response;
  }
  absl::StatusOr<v1::UpdateStatus> Query(uint64_t task, UpdateId id, const std::string& client = "site-a") {
    grpc::ClientContext context;
    Identify(&context, client);
    v1::QueryUpdateRequest request;
    *request.add_keys() = KeyToProto(kJob, task, id);
    v1::QueryUpdateResponse response;
    const grpc::Status status = stub->QueryUpdate(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    if (response.updates_size() != 1) return Internal("{} answers to one key", response.updates_size());
    return response.updates(0);
  }
  // Polls, because what is waited for happens in the server's threads.
  template <typename Condition>
  static bool Eventually(Condition condition, absl::Duration timeout = absl::Seconds(10)) {
    const absl::Time end = absl::Now() + timeout;
    while (!condition()) {
      if (absl::Now() > end) return false;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return true;
  }
  size_t accepted() {
    absl::MutexLock lock(&federation->mutex);
    return federation->accepted.size();
  }
  size_t rejected() {
    absl::MutexLock lock(&federation->mutex);
    return federation->rejected.size();
  }

  FakeClock clock;
  FakeAdmin admin;
  std::unique_ptr<FakeFederation> federation;
  std::unique_ptr<GrpcServer> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Federation::Stub> stub;
  std::string pushback_ms;
};

}  // namespace tributary::aggregator
