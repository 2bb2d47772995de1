// Ingress and coordinator have the same rank and do not know each other; this forwards one to the other.
// Threads: as safe as the coordinator, which must outlive it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "aggregator/coordinator/coordinator.h"
#include "aggregator/ingress/backend.h"
#include "aggregator/ingress/relay_client.h"

namespace tributary::aggregator {

class BackendAdapter final : public FederationBackend, public AdminBackend, public RelayBackend {
 public:
  explicit BackendAdapter(Coordinator* coordinator) : coordinator_(coordinator) {}

  absl::Status Authenticate(const std::string& client, const std::string& secret) override { return coordinator_->Authenticate(client, secret); }
  absl::StatusOr<uint64_t> Attach(const std::string& client, const v1::Hello& hello, std::shared_ptr<ControlStream> stream) override {
    return coordinator_->Attach(client, hello, std::make_shared<Sink>(std::move(stream)));
  }
  void OnMessage(uint64_t session, const v1::ClientMessage& message) override { coordinator_->OnMessage(session, message); }
  void Detach(uint64_t session) override { coordinator_->Detach(session); }
  absl::StatusOr<Blob> Model(const std::string& client, const std::string& job, uint64_t version) override {
    return ToBlob(coordinator_->Model(client, job, version));
  }
  absl::StatusOr<Blob> Fitness(const std::string& client, const std::string& job, uint64_t after, uint64_t version) override {
    return ToBlob(coordinator_->Fitness(client, job, after, version));
  }
  absl::StatusOr<Blob> Vectors(const std::string& client, const std::string& job, uint64_t version) override {
    return ToBlob(coordinator_->Vectors(client, job, version));
  }
  absl::StatusOr<Blob> ClientRow(const std::string& client, const std::string& job) override { return ToBlob(coordinator_->ClientRow(client, job)); }
  absl::StatusOr<Blob> Artifact(const std::string& client, const std::string& job) override { return ToBlob(coordinator_->Artifact(client, job)); }
  void CountDownload(const std::string& job, uint64_t bytes) override { coordinator_->CountDownload(job, bytes); }
  absl::StatusOr<Admission> AdmitUpload(const UploadHeader& header, absl::Duration* retry) override {
    TRIB_ASSIGN_OR_RETURN(UpdateAdmission admission, coordinator_->AdmitUpload(ToHeader(header), retry));
    Admission out;
    out.state = admission.state;
    out.version = admission.version;
    out.reason = std::move(admission.reason);
    out.grant.owner = std::move(admission.grant.owner);
    out.grant.object = std::move(admission.grant.object);
    out.grant.encoding = admission.grant.encoding;
    out.grant.float_bytes = admission.grant.float_bytes;
    out.grant.dtype = admission.grant.dtype;
    out.grant.max_abs = admission.grant.max_abs;
    return out;
  }
  absl::Status AcceptUpdate(const UploadHeader& header, WritableObject object, const ScanResult& scan) override {
    return coordinator_->AcceptUpdate(ToHeader(header), std::move(object), scan);
  }
  void RejectUpdate(const UploadHeader& header, const std::string& reason_code, const std::string& message) override {
    coordinator_->RejectUpdate(ToHeader(header), reason_code, message);
  }
  v1::UpdateStatus Query(const std::string& client, const v1::UpdateKey& key) override { return coordinator_->Query(client, key); }

  absl::StatusOr<v1::SubmitJobResponse> SubmitJob(const v1::SubmitHeader& header, std::unique_ptr<ByteSource> tensors,
                                                  std::string artifact) override {
    return coordinator_->SubmitJob(header, std::move(tensors), std::move(artifact));
  }
  std::vector<v1::Job> ListJobs() override { return coordinator_->ListJobs(); }
  absl::StatusOr<v1::Job> GetJob(const std::string& job) override { return coordinator_->GetJob(job); }
  absl::StatusOr<v1::Job> CancelJob(const std::string& job, const std::string& reason) override { return coordinator_->CancelJob(job, reason); }
  absl::StatusOr<v1::Job> ResumeJob(const std::string& job) override { return coordinator_->ResumeJob(job); }
  absl::StatusOr<std::shared_ptr<void>> Watch(const std::string& job, std::function<void()> changed) override {
    return coordinator_->Watch(job, std::move(changed));
  }
  std::vector<v1::Client> ListClients(bool connected_only) override { return coordinator_->ListClients(connected_only); }
  v1::Node GetNode() override { return coordinator_->GetNode(); }
  absl::StatusOr<std::vector<v1::VersionInfo>> ListVersions(const std::string& job) override { return coordinator_->ListVersions(job); }
  absl::StatusOr<v1::VersionInfo> GetVersion(const v1::GetVersionRequest& request) override { return coordinator_->GetVersion(request); }
  absl::StatusOr<std::string> ExportVersion(const v1::GetVersionRequest& request) override { return coordinator_->ExportVersion(request); }

  absl::StatusOr<uint64_t> AttachNode(const std::string& node, const v1::NodeHello& hello, std::shared_ptr<NodeStream> stream) override {
    return coordinator_->AttachNode(node, hello, std::make_shared<ToNode>(std::move(stream)));
  }
  void OnNodeReport(uint64_t session, const v1::NodeReport& report) override { coordinator_->OnNodeReport(session, report); }
  void DetachNode(uint64_t session) override { coordinator_->DetachNode(session); }
  PartialRoom BeginPartial(const std::string& node, const CheckedPartial& partial) override {
    PartialAdmission admission = coordinator_->BeginPartial(node, partial);
    return {std::move(admission.answer), std::move(admission.sums), admission.float_bytes, admission.limit};
  }
  v1::PartialAnswer FinishPartial(const std::string& node, const CheckedPartial& partial, std::span<const std::byte> sums) override {
    return coordinator_->FinishPartial(node, partial, sums);
  }
  void RefusePartial(const std::string& node, const CheckedPartial& partial, const std::string& reason) override {
    coordinator_->RefusePartial(node, partial, reason);
  }
  absl::StatusOr<v1::RelayVersion> RelayGetVersion(const std::string& node, const std::string& job, uint64_t version) override {
    return coordinator_->RelayGetVersion(node, job, version);
  }

 private:
  class ToNode final : public NodeSink {
   public:
    explicit ToNode(std::shared_ptr<NodeStream> stream) : stream_(std::move(stream)) {}
    void Send(v1::TopMessage message) override { stream_->Send(std::move(message)); }
    void Close(const absl::Status& status) override { stream_->Close(status); }

   private:
    const std::shared_ptr<NodeStream> stream_;
  };
  class Sink final : public ClientSink {
   public:
    explicit Sink(std::shared_ptr<ControlStream> stream) : stream_(std::move(stream)) {}
    void Send(v1::ServerMessage message) override { stream_->Send(std::move(message)); }
    void Close(const absl::Status& status) override { stream_->Close(status); }

   private:
    const std::shared_ptr<ControlStream> stream_;
  };

  static absl::StatusOr<Blob> ToBlob(absl::StatusOr<SharedBytes> bytes) {
    if (!bytes.ok()) return bytes.status();
    return Blob{bytes->bytes, std::move(bytes->sha256), std::move(bytes->xxh3_128), bytes->memfd, std::move(bytes->owner)};
  }
  static UpdateHeader ToHeader(const UploadHeader& header) {
    return {header.key, header.job, header.version, header.layout, header.codec, header.bytes, header.xxh3_128, header.weight, header.examples,
            header.metrics, header.scalars, header.moe};
  }

  Coordinator* const coordinator_;
};

// The other way round: the coordinator below, the client of the node above.
class UpstreamAdapter final : public Upstream {
 public:
  explicit UpstreamAdapter(RelayClient* client) : client_(client) {}
  absl::StatusOr<v1::PartialAnswer> Push(const CheckedPartial& partial, std::span<const std::span<const std::byte>> sums) override {
    return client_->Push(partial, sums);
  }
  absl::StatusOr<v1::RelayVersion> GetVersion(const std::string& job, uint64_t version) override { return client_->GetVersion(job, version); }
  absl::Status FetchModel(const std::string& job, uint64_t version, std::span<std::byte> out) override { return client_->FetchModel(job, version, out); }
  absl::Status FetchArtifact(const std::string& job, std::string* out) override { return client_->FetchArtifact(job, out); }
  void Report(const v1::NodeReport& report) override { client_->Report(report); }

 private:
  RelayClient* const client_;
};

}  // namespace tributary::aggregator
