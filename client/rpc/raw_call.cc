#include "client/rpc/raw_call.h"

#include "common/check.h"

namespace tributary::client {

RawCall::RawCall(Connection& connection, Connection::Call& call, const std::string& method)
    : call_(call), stream_(connection.generic().PrepareCall(&call.context(), "/tributary.v1.Federation/" + method, &queue_)) {
  stream_->StartCall(this);
  Wait();
}

RawCall::~RawCall() {
  if (!finished_) {
    call_.context().TryCancel();
    Finish();
  }
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool RawCall::Wait() {
  void* tag = nullptr;
  bool ok = false;
  TRIB_CHECK(queue_.Next(&tag, &ok), "the queue of a call was shut down while it ran");
  return ok;
}

bool RawCall::Write(const grpc::ByteBuffer& message) {
  stream_->Write(message, this);
  return Wait();
}

bool RawCall::WritesDone() {
  stream_->WritesDone(this);
  return Wait();
}

bool RawCall::Read(grpc::ByteBuffer* message) {
  stream_->Read(message, this);
  return Wait();
}

grpc::Status RawCall::Finish() {
  grpc::Status status;
  stream_->Finish(&status, this);
  Wait();
  finished_ = true;
  return status;
}

}  // namespace tributary::client
