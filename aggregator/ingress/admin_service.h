// Service Admin, thin over AdminBackend. gRPC's synchronous API: few callers, long calls, and the thread count is bounded by the
// server's quota. Sizes are checked here; names and contents are the backend's.
// Threads: safe. `backend` and `clock` must outlive the service.
#pragma once

#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "aggregator/ingress/backend.h"
#include "common/status.h"
#include "tributary/v1/admin.grpc.pb.h"

namespace tributary::aggregator {

struct SubmitLimits {
  size_t max_spec_bytes = 1024 * 1024;
  uint64_t max_tensors_bytes = uint64_t{64} << 30;  // and likewise the artifact
};
// What a header can show, before any byte is taken.
absl::Status CheckSubmitHeader(const v1::SubmitHeader& header, const SubmitLimits& limits);
// With the whole artifact at hand: of the announced size and hash.
absl::Status CheckArtifact(const v1::SubmitHeader& header, const std::string& artifact);

class AdminService final : public v1::Admin::Service {
 public:
  // `local_address`: what GetNode says.
  AdminService(const SubmitLimits& limits, std::string local_address, AdminBackend* backend)
      : limits_(limits), local_address_(std::move(local_address)), backend_(backend) {}
  // Ends the calls that do not end by themselves.
  void Stop() { stopping_ = true; }

  grpc::Status SubmitJob(grpc::ServerContext* context, grpc::ServerReader<v1::SubmitJobRequest>* reader,
                         v1::SubmitJobResponse* response) override;
  grpc::Status ListJobs(grpc::ServerContext* context, const v1::ListJobsRequest* request, v1::ListJobsResponse* response) override;
  grpc::Status GetJob(grpc::ServerContext* context, const v1::GetJobRequest* request, v1::Job* response) override;
  grpc::Status CancelJob(grpc::ServerContext* context, const v1::CancelJobRequest* request, v1::Job* response) override;
  grpc::Status ResumeJob(grpc::ServerContext* context, const v1::ResumeJobRequest* request, v1::Job* response) override;
  grpc::Status WatchJob(grpc::ServerContext* context, const v1::GetJobRequest* request, grpc::ServerWriter<v1::Job>* writer) override;
  grpc::Status ListClients(grpc::ServerContext* context, const v1::ListClientsRequest* request,
                           v1::ListClientsResponse* response) override;
  grpc::Status GetNode(grpc::ServerContext* context, const v1::GetNodeRequest* request, v1::Node* response) override;
  grpc::Status ListStrategies(grpc::ServerContext* context, const v1::ListStrategiesRequest* request,
                              v1::ListStrategiesResponse* response) override;
  grpc::Status ListVersions(grpc::ServerContext* context, const v1::ListVersionsRequest* request,
                            grpc::ServerWriter<v1::VersionInfo>* writer) override;
  grpc::Status GetVersion(grpc::ServerContext* context, const v1::GetVersionRequest* request, v1::VersionInfo* response) override;
  grpc::Status ExportVersion(grpc::ServerContext* context, const v1::GetVersionRequest* request,
                             grpc::ServerWriter<v1::ExportChunk>* writer) override;

 private:
  absl::Status Submit(grpc::ServerReader<v1::SubmitJobRequest>* reader, v1::SubmitJobResponse* response);
  absl::Status Watch(const std::string& job, grpc::ServerContext* context, grpc::ServerWriter<v1::Job>* writer);

  const SubmitLimits limits_;
  const std::string local_address_;
  AdminBackend* const backend_;
  std::atomic<bool> stopping_{false};
};

}  // namespace tributary::aggregator
