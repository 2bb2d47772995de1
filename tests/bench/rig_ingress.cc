#include "tests/bench/rig_ingress.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <fstream>

#include "client/rpc/upload.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/ids.h"

namespace tributary::bench {

using namespace aggregator;

absl::StatusOr<uint64_t> RigBackend::Attach(const std::string&, const v1::Hello&, std::shared_ptr<ControlStream> stream) {
  v1::ServerMessage message;
  message.mutable_welcome();
  stream->Send(std::move(message));
  return uint64_t{1};
}
void RigBackend::OnMessage(uint64_t, const v1::ClientMessage& message) {
  if (on_control_) on_control_(message);
}
void RigBackend::Detach(uint64_t) {
  if (on_detach_) on_detach_();
}
absl::StatusOr<Blob> RigBackend::Model(const std::string&, const std::string&, uint64_t) { return NotFound("no model in a rig"); }
absl::StatusOr<Blob> RigBackend::Artifact(const std::string&, const std::string&) { return NotFound("no artifact in a rig"); }

absl::StatusOr<FederationBackend::Admission> RigBackend::AdmitUpload(const UploadHeader& header, absl::Duration* retry) {
  Admission admission;
  auto object = pool_->Reserve(header.bytes);
  if (!object.ok()) {
    *retry = absl::Milliseconds(50);
    return object.status();
  }
  admission.grant.object = *std::move(object);
  admission.state = v1::UPDATE_STATE_PARTIAL;
  admission.grant.float_bytes = header.bytes;
  return admission;
}
absl::Status RigBackend::AcceptUpdate(const UploadHeader&, WritableObject object, const ScanResult&) {
  accept_(std::move(object));
  return absl::OkStatus();
}
// A client that was told to wait asks first. Without a state it would be answered nonsense, and would ask for ever.
v1::UpdateStatus RigBackend::Query(const std::string&, const v1::UpdateKey& key) {
  v1::UpdateStatus status;
  *status.mutable_key() = key;
  status.set_state(v1::UPDATE_STATE_UNKNOWN);
  return status;
}
void RigBackend::RejectUpdate(const UploadHeader&, const std::string&, const std::string& message) { TRIB_CHECK(false, "rejected: {}", message); }

namespace {

class NoAdmin final : public AdminBackend {
 public:
  absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::SubmitHeader&, std::unique_ptr<ByteSource>, std::string) override { return NotFound("no jobs in a rig"); }
  std::vector<v1::Job> ListJobs() override { return {}; }
  absl::StatusOr<v1::Job> GetJob(const std::string&) override { return NotFound("no jobs in a rig"); }
  absl::StatusOr<v1::Job> CancelJob(const std::string&, const std::string&) override { return NotFound("no jobs in a rig"); }
  absl::StatusOr<v1::Job> ResumeJob(const std::string&) override { return NotFound("no jobs in a rig"); }
  absl::StatusOr<std::shared_ptr<void>> Watch(const std::string&, std::function<void()>) override { return NotFound("no jobs in a rig"); }
  std::vector<v1::Client> ListClients(bool) override { return {}; }
  v1::Node GetNode() override { return {}; }
  absl::StatusOr<std::vector<v1::VersionInfo>> ListVersions(const std::string&) override { return NotFound("no jobs in a rig"); }
  absl::StatusOr<v1::VersionInfo> GetVersion(const v1::GetVersionRequest&) override { return NotFound("no jobs in a rig"); }
  absl::StatusOr<std::string> ExportVersion(const v1::GetVersionRequest&) override { return NotFound("no jobs in a rig"); }
};

}  // namespace

struct RigServer::Impl {
  NoAdmin admin;
  std::unique_ptr<GrpcServer> server;
};
RigServer::RigServer(const std::string& address, RigBackend* backend) : impl_(std::make_unique<Impl>()) {
  GrpcServerOptions options;
  options.address = address;
  options.local_transfer = false;  // what is measured is the wire
  impl_->server = OrDie(GrpcServer::Start(options, backend, &impl_->admin));
  impl_->server->SetServing(true);
}
RigServer::~RigServer() = default;
int RigServer::port() const { return impl_->server->port(); }

PayloadFile::PayloadFile(std::span<const std::byte> payload) : remove_(true) {
  const std::filesystem::path memory = "/dev/shm";
  std::string name = ((std::filesystem::is_directory(memory) ? memory : std::filesystem::temp_directory_path()) / "tributary-rig.XXXXXX").string();
  const UniqueFd fd(::mkstemp(name.data()));
  TRIB_CHECK(fd.valid(), "{}: cannot be made", name);
  path_ = name;
  std::ofstream(path_, std::ios::binary).write(reinterpret_cast<const char*>(payload.data()), static_cast<std::streamsize>(payload.size()));
  TRIB_CHECK(std::filesystem::file_size(path_) == payload.size(), "{}: no room for {} bytes", name, payload.size());
  digest_ = Xxh3Digest(payload);
}
PayloadFile::PayloadFile(std::filesystem::path existing) : path_(std::move(existing)) { digest_ = Xxh3Digest(OrDie(MappedFile::Open(path_)).bytes()); }
PayloadFile::~PayloadFile() {
  std::error_code ignored;
  if (remove_) std::filesystem::remove(path_, ignored);
}

std::shared_ptr<const client::OutboxEntry> PayloadFile::NewEntry(uint64_t task) const {
  MappedFile payload = OrDie(MappedFile::Open(path_));
  client::OutboxHeader header;
  header.job = "rig-0a1b2c";
  header.task = task;
  header.update = RandomUpdateId();
  header.layout = std::string(64, 'a');
  header.codec = "f32";
  header.bytes = payload.bytes().size();
  header.xxh3_128 = digest_;
  header.weight = 1;
  return std::make_shared<const client::OutboxEntry>(client::OutboxEntry{.header = std::move(header), .payload = std::move(payload), .file = UniqueFd()});
}

client::Identity RigIdentity(int number) { return {.client = fmt::format("rig-{}", number), .secret = std::string(64, 'a')}; }

void Upload(client::Connection& connection, const client::Identity& identity, const std::shared_ptr<const client::OutboxEntry>& entry) {
  for (bool retry = false;; retry = true) {
    const auto result = client::UploadUpdate(connection, identity, entry, retry);
    if (const auto* verdict = std::get_if<client::Verdict>(&result)) {
      TRIB_CHECK(verdict->state == client::UpdateState::kAccepted, "the upload was not accepted: {}", verdict->reason);
      return;
    }
    const auto& error = std::get<client::CallError>(result);
    TRIB_CHECK(client::IsRetryable(error.status), "upload: {}", error.status.ToString());
    absl::SleepFor(error.push_back.value_or(absl::Milliseconds(10)));
  }
}

}  // namespace tributary::bench
