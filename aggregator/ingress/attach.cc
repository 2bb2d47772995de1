// Attach: the control stream of one client. The reactor reads; AttachCall, shared with the backend, queues and writes.
#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <memory>
#include <optional>

#include "aggregator/ingress/federation_service.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMaxControlBytes = 64 * 1024;             // of any message but Hello
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);  // to flush the queue before a close becomes a cancellation

// Starting gRPC operations under the mutex is safe: they only enqueue, and reactions run on gRPC's own threads. It is needed, too:
// the reactor and its context may go as soon as Finish was called, and two writes must not be started at once.
class AttachCall final : public ControlStream, public StreamEnd {
 public:
  AttachCall(AttachReactor* reactor, grpc::CallbackServerContext* context, const IngressContext& ingress)
      : limit_(ingress.control_queue), clock_(ingress.clock), local_address_(ingress.local_address), reactor_(reactor), context_(context) {}

  void Send(v1::ServerMessage message) override {
    if (message.has_welcome()) message.mutable_welcome()->set_local_address(local_address_);
    grpc::ByteBuffer buffer = SerializeMessage(message);
    absl::MutexLock lock(&mutex_);
    if (finished_ || closing_.has_value()) return;
    if (queue_.size() >= limit_) {
      closing_ = ResourceExhausted("control stream: {} messages wait, the client does not read", queue_.size());
      context_->TryCancel();  // the pending write cannot be overtaken by a status
      return;
    }
    queue_.push_back(std::move(buffer));
    if (queue_.size() == 1) reactor_->StartWrite(&queue_.front());
  }

  void Close(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    if (finished_ || closing_.has_value()) return;
    closing_ = status;
    set_deadline(clock_->Now() + kCloseTimeout);
    FinishIfIdle();
  }

  void End(const absl::Status& status) override {
    {
      absl::MutexLock lock(&mutex_);
      if (finished_) return;
      if (closing_.has_value()) return context_->TryCancel();
    }
    Close(status);
  }
  bool endless() const override { return true; }

  // Reactions.
  void WriteDone(bool ok) {
    absl::MutexLock lock(&mutex_);
    queue_.pop_front();  // the deque's other elements stay where they are
    if (!ok) {
      queue_.clear();
      if (!closing_.has_value()) closing_ = Unavailable("the client went away");
    }
    if (!queue_.empty()) reactor_->StartWrite(&queue_.front());
    FinishIfIdle();
  }
  bool closing() const {
    absl::MutexLock lock(&mutex_);
    return finished_ || closing_.has_value();
  }

 private:
  void FinishIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_ || !closing_.has_value() || !queue_.empty()) return;
    finished_ = true;
    clear_deadline();
    reactor_->Finish(ToGrpc(*closing_));
  }

  const size_t limit_;
  const Clock* const clock_;
  const std::string local_address_;
  mutable absl::Mutex mutex_;
  AttachReactor* const reactor_ ABSL_PT_GUARDED_BY(mutex_);               // valid until finished_
  grpc::CallbackServerContext* const context_ ABSL_PT_GUARDED_BY(mutex_);  // likewise
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);  // the front one is being written
  std::optional<absl::Status> closing_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

class Attach final : public AttachReactor {
 public:
  Attach(const IngressContext& ingress, Caller caller, grpc::CallbackServerContext* context)
      : ingress_(ingress), caller_(std::move(caller)),
        call_(std::make_shared<AttachCall>(this, context, ingress)) {
    call_->set_deadline(ingress_.clock->Now() + ingress_.hello_timeout);
    ingress_.watch->Add(call_, "Hello");
    StartSendInitialMetadata();  // lets a client see at once that the stream stands
    StartRead(&buffer_);
  }

  void OnReadDone(bool ok) override {
    // No more reads: the client is gone, or has said that it will send nothing more, or the call was finished from elsewhere.
    if (!ok) return call_->Close(absl::OkStatus());
    if (call_->closing()) return;
    const absl::Status status = Take();
    buffer_.Clear();
    if (!status.ok()) return call_->Close(status);
    StartRead(&buffer_);
  }
  void OnWriteDone(bool ok) override { call_->WriteDone(ok); }
  void OnDone() override {
    if (session_.has_value()) ingress_.backend->Detach(*session_);
    delete this;
  }

 private:
  absl::Status Take() {
    if (session_.has_value() && buffer_.Length() > kMaxControlBytes)
      return ResourceExhausted("control message: {} bytes, expected at most {}", buffer_.Length(), kMaxControlBytes);
    TRIB_ASSIGN_OR_RETURN(const v1::ClientMessage message, ParseMessage<v1::ClientMessage>(buffer_));
    if (!session_.has_value() && !message.has_hello())
      return FailedPrecondition("control stream: the first message must be hello");
    if (session_.has_value() && message.has_hello()) return FailedPrecondition("control stream: a second hello");
    TRIB_RETURN_IF_ERROR(CheckClientMessage(message));
    if (message.has_hello()) {
      call_->clear_deadline();
      TRIB_ASSIGN_OR_RETURN(session_, ingress_.backend->Attach(caller_.client(), message.hello(), call_));
    } else {
      if (message.has_declined()) ingress_.uploads->ForgetTask(caller_, message.declined().job(), message.declined().task());
      ingress_.backend->OnMessage(*session_, message);
    }
    return absl::OkStatus();
  }

  const IngressContext ingress_;
  const Caller caller_;
  // Shared: the backend may send and close after the stream has ended.
  const std::shared_ptr<AttachCall> call_;
  grpc::ByteBuffer buffer_;
  std::optional<uint64_t> session_;
};

}  // namespace

AttachReactor* MakeAttachReactor(const IngressContext& ingress, Caller caller, grpc::CallbackServerContext* context) {
  return new Attach(ingress, std::move(caller), context);
}

}  // namespace tributary::aggregator
