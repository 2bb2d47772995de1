// One identity's control stream, over gRPC's callback API: no thread waits for it, so a daemon may host many identities.
// Life: Open says Hello; each message from the server goes to on_message, in order; on_end is called exactly once, last. Both are
// called on gRPC's threads and must only hand the matter on. Send queues (at most 256 messages; one more ends the stream:
// a server that stopped reading is as good as gone). Messages are dropped after the end.
// Lifetime: shared, because gRPC calls back until the end even when the owner has let go. Threads: safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>

#include "client/rpc/connection.h"
#include "tributary/v1/federation.grpc.pb.h"

namespace tributary::client {

class AttachStream final : public grpc::ClientBidiReactor<v1::ClientMessage, v1::ServerMessage> {
 public:
  using OnMessage = std::function<bool(v1::ServerMessage)>;  // false: too much; the stream ends
  using OnEnd = std::function<void(CallError)>;  // status OK: the server closed the stream

  // `control`: Connection::control(); must outlive the stream.
  static std::shared_ptr<AttachStream> Open(v1::Federation::Stub& control, const Identity& identity, v1::ClientMessage hello,
                                            OnMessage on_message, OnEnd on_end);
  void Send(v1::ClientMessage message);
  // Half-closes: the server sees the client leave in good order. Cancel ends it at once.
  void Close();
  void Cancel();

 private:
  AttachStream(OnMessage on_message, OnEnd on_end) : on_message_(std::move(on_message)), on_end_(std::move(on_end)) {}
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void StartNextWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::ClientContext context_;
  OnMessage on_message_;
  OnEnd on_end_;
  v1::ServerMessage incoming_;
  std::shared_ptr<AttachStream> self_;  // from Open to OnDone
  absl::Mutex mutex_;
  std::deque<v1::ClientMessage> outgoing_ ABSL_GUARDED_BY(mutex_);  // front: being written
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;   // no more sends; writes-done follows the last one
  bool writes_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;     // the hold is gone: no operation may start
};

}  // namespace tributary::client
