#include "aggregator/ingress/admin_service.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>

#include "aggregator/core/strategy.h"
#include "common/digest.h"
#include "common/ids.h"
#include "proto/codec.h"
#include "proto/grpc_status.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kExportChunkBytes = 1024 * 1024;
constexpr absl::Duration kWatchInterval = absl::Milliseconds(100);  // at most ten a second
constexpr absl::Duration kWatchPoll = absl::Milliseconds(200);      // how soon a watcher notices that its client has gone

// Says that a job changed. Shared with the backend's listener, which may call it after the watcher has gone.
class ChangeFlag {
 public:
  void Raise() {
    absl::MutexLock lock(&mutex_);
    raised_ = true;
  }
  // Waits until raised, at most `timeout`; lowers it.
  bool Await(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&raised_), timeout);
    return std::exchange(raised_, false);
  }

 private:
  absl::Mutex mutex_;
  bool raised_ ABSL_GUARDED_BY(mutex_) = false;
};

template <typename Message>
grpc::Status Answer(absl::StatusOr<Message> result, Message* response) {
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

bool Ended(const v1::Job& job) {
  return job.state() == v1::JOB_STATE_DONE || job.state() == v1::JOB_STATE_FAILED || job.state() == v1::JOB_STATE_CANCELLED;
}

// Adds a part; refuses one that passes the announced size, so that a lie costs no memory.
absl::Status Append(std::string_view what, const std::string& part, uint64_t announced, std::string* whole) {
  if (part.size() > announced - whole->size())
    return InvalidArgument("{}: more than the announced {} bytes came", what, announced);
  // Once instead of growing by copying; a larger announcement than this is believed as it comes true.
  if (whole->empty()) whole->reserve(std::min<uint64_t>(announced, uint64_t{1} << 30));
  *whole += part;
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSubmitHeader(const v1::SubmitHeader& header, const SubmitLimits& limits) {
  if (header.spec_yaml().empty() || header.spec_yaml().size() > limits.max_spec_bytes)
    return InvalidArgument("spec_yaml: expected 1 to {} bytes, got {}", limits.max_spec_bytes, header.spec_yaml().size());
  if (header.tensors_bytes() > limits.max_tensors_bytes)
    return InvalidArgument("tensors_bytes: expected at most {}, got {}", limits.max_tensors_bytes, header.tensors_bytes());
  if (header.artifact_bytes() > limits.max_tensors_bytes)
    return InvalidArgument("artifact_bytes: expected at most {}, got {}", limits.max_tensors_bytes, header.artifact_bytes());
  if (header.artifact_bytes() > 0 && header.artifact_sha256().size() != 64)
    return InvalidArgument("artifact_sha256: expected 64 hex digits, got {} bytes", header.artifact_sha256().size());
  return absl::OkStatus();
}

absl::Status CheckArtifact(const v1::SubmitHeader& header, const std::string& artifact) {
  if (artifact.size() != header.artifact_bytes())
    return InvalidArgument("artifact: expected the announced {} bytes, got {}", header.artifact_bytes(), artifact.size());
  if (artifact.empty()) return absl::OkStatus();
  const std::string sha256 = Sha256Hex(std::as_bytes(std::span(artifact.data(), artifact.size())));
  if (sha256 != header.artifact_sha256())
    return InvalidArgument("artifact: SHA-256 is {}, announced {}", sha256, header.artifact_sha256());
  return absl::OkStatus();
}

absl::Status AdminService::Submit(grpc::ServerReader<v1::SubmitJobRequest>* reader, v1::SubmitJobResponse* response) {
  v1::SubmitJobRequest request;
  if (!reader->Read(&request) || !request.has_header()) return InvalidArgument("SubmitJob: the first message must be the header");
  const v1::SubmitHeader header = request.header();
  TRIB_RETURN_IF_ERROR(CheckSubmitHeader(header, limits_));
  std::string tensors;
  std::string artifact;
  while (reader->Read(&request)) {
    switch (request.message_case()) {
      case v1::SubmitJobRequest::kTensors:
        TRIB_RETURN_IF_ERROR(Append("tensors", request.tensors(), header.tensors_bytes(), &tensors));
        break;
      case v1::SubmitJobRequest::kArtifact:
        TRIB_RETURN_IF_ERROR(Append("artifact", request.artifact(), header.artifact_bytes(), &artifact));
        break;
      default:
        return InvalidArgument("SubmitJob: expected tensors or artifact after the header");
    }
  }
  if (tensors.size() != header.tensors_bytes())
    return InvalidArgument("tensors: expected the announced {} bytes, got {}", header.tensors_bytes(), tensors.size());
  TRIB_RETURN_IF_ERROR(CheckArtifact(header, artifact));
  TRIB_ASSIGN_OR_RETURN(*response, backend_->SubmitJob(header, std::make_unique<MemorySource>(std::move(tensors)), std::move(artifact)));
  return absl::OkStatus();
}

grpc::Status AdminService::SubmitJob(grpc::ServerContext* context, grpc::ServerReader<v1::SubmitJobRequest>* reader,
                                     v1::SubmitJobResponse* response) {
  const absl::Status status = Submit(reader, response);
  if (context->IsCancelled()) return grpc::Status::CANCELLED;
  return ToGrpc(status);
}

grpc::Status AdminService::ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsResponse* response) {
  for (v1::Job& job : backend_->ListJobs()) *response->add_jobs() = std::move(job);
  return grpc::Status::OK;
}

grpc::Status AdminService::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* response) {
  if (const absl::Status status = CheckJobRef(request->job()); !status.ok()) return ToGrpc(status);
  return Answer(backend_->GetJob(request->job()), response);
}

grpc::Status AdminService::CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request, v1::Job* response) {
  if (const absl::Status status = CheckJobRef(request->job()); !status.ok()) return ToGrpc(status);
  if (request->reason().size() > kMaxReasonBytes)
    return ToGrpc(InvalidArgument("reason: expected at most {} bytes, got {}", kMaxReasonBytes, request->reason().size()));
  return Answer(backend_->CancelJob(request->job(), request->reason()), response);
}

grpc::Status AdminService::ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest* request, v1::Job* response) {
  if (const absl::Status status = CheckJobRef(request->job()); !status.ok()) return ToGrpc(status);
  return Answer(backend_->ResumeJob(request->job()), response);
}

absl::Status AdminService::Watch(const std::string& job, grpc::ServerContext* context, grpc::ServerWriter<v1::Job>* writer) {
  TRIB_RETURN_IF_ERROR(CheckJobRef(job));
  const auto flag = std::make_shared<ChangeFlag>();
  // The token first, then the state: a change in between is seen twice rather than never.
  TRIB_ASSIGN_OR_RETURN(const std::shared_ptr<void> token, backend_->Watch(job, [flag] { flag->Raise(); }));
  while (!stopping_ && !context->IsCancelled()) {
    TRIB_ASSIGN_OR_RETURN(const v1::Job now, backend_->GetJob(job));
    const absl::Time sent = absl::Now();
    if (!writer->Write(now)) return Cancelled("the watcher went away");
    if (Ended(now)) return absl::OkStatus();
    while (!flag->Await(kWatchPoll)) {
      if (stopping_ || context->IsCancelled()) return Unavailable("the aggregator is going away");
    }
    absl::SleepFor(std::max(absl::ZeroDuration(), kWatchInterval - (absl::Now() - sent)));
  }
  return Unavailable("the aggregator is going away");
}

grpc::Status AdminService::WatchJob(grpc::ServerContext* context, const v1::GetJobRequest* request,
                                    grpc::ServerWriter<v1::Job>* writer) {
  return ToGrpc(Watch(request->job(), context, writer));
}

grpc::Status AdminService::ListClients(grpc::ServerContext*, const v1::ListClientsRequest* request,
                                       v1::ListClientsResponse* response) {
  if (!request->client().empty()) {
    if (const absl::Status status = ValidateClientId(request->client()); !status.ok()) return ToGrpc(status);
  }
  for (v1::Client& client : backend_->ListClients(request->connected_only())) {
    if (request->client().empty() || client.id() == request->client()) *response->add_clients() = std::move(client);
  }
  if (!request->client().empty() && response->clients().empty())
    return ToGrpc(NotFound("client '{}': {}", request->client(), request->connected_only() ? "is not connected" : "has never connected"));
  return grpc::Status::OK;
}

grpc::Status AdminService::GetNode(grpc::ServerContext*, const v1::GetNodeRequest*, v1::Node* response) {
  *response = backend_->GetNode();
  response->set_local_address(local_address_);
  return grpc::Status::OK;
}

grpc::Status AdminService::ListStrategies(grpc::ServerContext*, const v1::ListStrategiesRequest*,
                                          v1::ListStrategiesResponse* response) {
  for (const StrategyEntry& entry : Strategies()) {
    v1::Strategy* strategy = response->add_strategies();
    strategy->set_name(std::string(entry.name));
    strategy->set_trait(entry.trait == StrategyTrait::kMergeable ? "mergeable" : "needs-all");
    strategy->set_help(std::string(entry.help));
    strategy->set_down(std::string(entry.down));
    strategy->set_up(std::string(entry.up));
    for (const ParamInfo& info : entry.params()) {
      v1::StrategyParam* param = strategy->add_params();
      param->set_name(info.name);
      param->set_default_value(info.default_value);
      param->set_range(info.range);
      param->set_help(info.help);
    }
  }
  return grpc::Status::OK;
}

grpc::Status AdminService::ListVersions(grpc::ServerContext*, const v1::ListVersionsRequest* request,
                                        grpc::ServerWriter<v1::VersionInfo>* writer) {
  if (const absl::Status status = CheckJobRef(request->job()); !status.ok()) return ToGrpc(status);
  const auto versions = backend_->ListVersions(request->job());
  if (!versions.ok()) return ToGrpc(versions.status());
  for (const v1::VersionInfo& version : *versions) {
    if (!writer->Write(version)) return grpc::Status::CANCELLED;
  }
  return grpc::Status::OK;
}

grpc::Status AdminService::GetVersion(grpc::ServerContext*, const v1::GetVersionRequest* request, v1::VersionInfo* response) {
  if (const absl::Status status = CheckJobRef(request->job()); !status.ok()) return ToGrpc(status);
  return Answer(backend_->GetVersion(*request), response);
}

grpc::Status AdminService::ExportVersion(grpc::ServerContext*, const v1::GetVersionRequest* request,
                                         grpc::ServerWriter<v1::ExportChunk>* writer) {
  if (const absl::Status status = CheckJobRef(request->job()); !status.ok()) return ToGrpc(status);
  const absl::StatusOr<std::string> file = backend_->ExportVersion(*request);
  if (!file.ok()) return ToGrpc(file.status());
  size_t offset = 0;
  do {
    v1::ExportChunk chunk;
    chunk.set_total_bytes(file->size());
    chunk.set_safetensors(file->substr(offset, kExportChunkBytes));
    offset += chunk.safetensors().size();
    if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
  } while (offset < file->size());
  return grpc::Status::OK;
}

}  // namespace tributary::aggregator
