#include "cli/client.h"

#include <chrono>

#include "proto/grpc_status.h"

namespace tributary::cli {

absl::StatusOr<Client> Client::Connect(const std::string& server, absl::Duration patience) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);  // a version of a mixture with 10,000 contributors whose counts are kept
  // A CLI that was told an address means that address, whatever proxy the environment names.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(patience);
  if (!channel->WaitForConnected(deadline)) {
    return Unavailable("no aggregator answers at {}", server);
  }
  return Client(v1::Admin::NewStub(channel));
}

absl::Status Client::FromGrpc(const grpc::Status& status) { return ::tributary::FromGrpc(status); }

}  // namespace tributary::cli
