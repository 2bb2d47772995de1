#include "client/rpc/attach_stream.h"

#include <utility>

namespace tributary::client {
namespace {
constexpr size_t kMaxOutgoing = 256;
}  // namespace

std::shared_ptr<AttachStream> AttachStream::Open(v1::Federation::Stub& control, const Identity& identity, v1::ClientMessage hello,
                                                 OnMessage on_message, OnEnd on_end) {
  std::shared_ptr<AttachStream> stream(new AttachStream(std::move(on_message), std::move(on_end)));
  stream->self_ = stream;
  Connection::AddIdentity(stream->context_, identity);
  control.async()->Attach(&stream->context_, stream.get());
  // Writes start outside of gRPC's callbacks, so the call must be held open for them until the last read failed.
  stream->AddHold();
  stream->StartRead(&stream->incoming_);
  stream->Send(std::move(hello));
  stream->StartCall();
  return stream;
}

void AttachStream::StartNextWrite() {
  if (writing_ || ended_) return;
  if (!outgoing_.empty()) {
    writing_ = true;
    StartWrite(&outgoing_.front());
  } else if (closing_ && !writes_done_) {
    writes_done_ = true;
    StartWritesDone();
  }
}

void AttachStream::Send(v1::ClientMessage message) {
  absl::MutexLock lock(&mutex_);
  if (ended_ || closing_) return;
  if (outgoing_.size() == kMaxOutgoing) {
    context_.TryCancel();
    return;
  }
  outgoing_.push_back(std::move(message));
  StartNextWrite();
}

void AttachStream::Close() {
  absl::MutexLock lock(&mutex_);
  if (ended_ || closing_) return;
  closing_ = true;
  StartNextWrite();
}

void AttachStream::Cancel() { context_.TryCancel(); }

void AttachStream::OnReadDone(bool ok) {
  if (!ok) {
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
    }
    RemoveHold();
    return;
  }
  if (!on_message_(std::exchange(incoming_, {}))) context_.TryCancel();
  StartRead(&incoming_);
}

void AttachStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  outgoing_.pop_front();
  if (!ok) {
    outgoing_.clear();
    closing_ = true;
    writes_done_ = true;
    return;
  }
  StartNextWrite();
}

void AttachStream::OnDone(const grpc::Status& status) {
  const std::shared_ptr<AttachStream> last = std::move(self_);
  CallError error;
  if (!status.ok()) error = Connection::ErrorOf(status, "Attach");
  on_end_(std::move(error));
}

}  // namespace tributary::client
