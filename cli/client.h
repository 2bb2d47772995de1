// The CLI's connection to an aggregator: a plaintext channel, short connect time, statuses with a sentence about what to do.
// Threads: thread-compatible. Errors: UNAVAILABLE within about 3 s when nothing listens at the address.
#pragma once

#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "cli/command.h"
#include "common/status.h"
#include "tributary/v1/admin.grpc.pb.h"

namespace tributary::cli {

// Default address if neither flag, environment nor configuration file names one.
inline constexpr char kDefaultServer[] = "127.0.0.1:7070";

class Client {
 public:
  // Waits until the channel is up.
  static absl::StatusOr<Client> Connect(const std::string& server, absl::Duration patience = absl::Seconds(3));
  v1::Admin::Stub& stub() { return *stub_; }

  // One unary call: Call(&v1::Admin::Stub::GetJob, request) -> StatusOr<v1::Job>.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    grpc::ClientContext context;
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }
  static absl::Status FromGrpc(const grpc::Status& status);

 private:
  explicit Client(std::unique_ptr<v1::Admin::Stub> stub) : stub_(std::move(stub)) {}
  std::unique_ptr<v1::Admin::Stub> stub_;
};

}  // namespace tributary::cli
