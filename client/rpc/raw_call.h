// One call of Federation whose messages are raw byte buffers, so that chunks travel without being copied into a message object.
// Blocking: each operation waits for its completion on the call's own queue. Ends early when the context is cancelled.
// Thread-compatible.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "client/rpc/connection.h"

namespace tributary::client {

class RawCall {
 public:
  // `method`: "PushUpdate", "FetchModel". Both must outlive the RawCall.
  RawCall(Connection& connection, Connection::Call& call, const std::string& method);
  ~RawCall();
  RawCall(const RawCall&) = delete;
  RawCall& operator=(const RawCall&) = delete;

  // Each returns false when the call is over, one way or the other: then ask Finish.
  bool Write(const grpc::ByteBuffer& message);
  bool WritesDone();
  bool Read(grpc::ByteBuffer* message);
  // Once, last.
  grpc::Status Finish();

 private:
  bool Wait();
  Connection::Call& call_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  bool finished_ = false;
};

}  // namespace tributary::client
