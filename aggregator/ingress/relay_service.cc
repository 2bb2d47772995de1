#include "aggregator/ingress/relay_service.h"

#include <deque>
#include <thread>
#include <utility>

#include "aggregator/ingress/identity.h"
#include "common/log.h"
#include "proto/grpc_status.h"
#include "proto/relay_codec.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMaxQueued = 4096;  // messages for a node that does not read; then its stream is ended

}  // namespace

// What the backend holds of a node's stream; may outlive it.
class RelayService::Control final : public NodeStream {
 public:
  using Stream = grpc::ServerReaderWriter<v1::TopMessage, v1::NodeMessage>;
  Control(grpc::ServerContext* context, Stream* stream) : context_(context), stream_(stream) {
    writer_ = std::jthread([this] { Write(); });
  }

  void Send(v1::TopMessage message) override {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    queue_.push_back(std::move(message));
    if (queue_.size() > kMaxQueued) EndLocked(ResourceExhausted("control stream: the node does not read"));
    wake_.Signal();
  }
  void Close(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    EndLocked(status);
  }
  // The call is over: nothing of it is touched afterwards.
  absl::Status Finish() {
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
      gone_ = true;
      wake_.Signal();
    }
    writer_.join();
    absl::MutexLock lock(&mutex_);
    context_ = nullptr;
    return status_;
  }

 private:
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (ended_) return;
    ended_ = true;
    status_ = status;
    wake_.Signal();
  }
  void Write() {
    while (true) {
      v1::TopMessage message;
      {
        absl::MutexLock lock(&mutex_);
        while (queue_.empty() && !ended_) wake_.Wait(&mutex_);
        if (queue_.empty() || gone_) {
          if (context_ != nullptr && !gone_) context_->TryCancel();  // ends the reading, too
          return;
        }
        message = std::move(queue_.front());
        queue_.pop_front();
      }
      if (!stream_->Write(message)) {
        absl::MutexLock lock(&mutex_);
        EndLocked(Unavailable("the node went away"));
        queue_.clear();
      }
    }
  }

  absl::Mutex mutex_;
  absl::CondVar wake_;
  grpc::ServerContext* context_ ABSL_GUARDED_BY(mutex_);
  Stream* const stream_;  // used by the writer only
  std::deque<v1::TopMessage> queue_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::jthread writer_;
};

void RelayService::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  for (Control* const control : controls_) control->Close(Unavailable("the aggregator is going away"));
}

absl::Status RelayService::RunAttach(grpc::ServerContext* context, Control::Stream* stream) {
  TRIB_ASSIGN_OR_RETURN(const Caller caller, Authenticate(*context, options_.identities));
  v1::NodeMessage message;
  if (!stream->Read(&message)) return Cancelled("the node went away");
  TRIB_RETURN_IF_ERROR(CheckNodeMessage(message));
  if (!message.has_hello()) return FailedPrecondition("control stream of a node: the first message must be hello");
  const auto control = std::make_shared<Control>(context, stream);
  {
    absl::MutexLock lock(&mutex_);
    controls_.insert(control.get());
    if (stopped_) control->Close(Unavailable("the aggregator is going away"));
  }
  const absl::StatusOr<uint64_t> session = options_.backend->AttachNode(caller.client(), message.hello(), control);
  absl::Status status = session.status();
  while (status.ok() && stream->Read(&message)) {
    status = CheckNodeMessage(message);
    if (status.ok() && !message.has_report()) status = FailedPrecondition("control stream of a node: a second hello");
    if (status.ok()) options_.backend->OnNodeReport(*session, message.report());
  }
  if (session.ok()) options_.backend->DetachNode(*session);
  {
    absl::MutexLock lock(&mutex_);
    controls_.erase(control.get());
  }
  const absl::Status ended = control->Finish();
  return status.ok() ? ended : status;
}

grpc::Status RelayService::Attach(grpc::ServerContext* context, Control::Stream* stream) { return ToGrpc(RunAttach(context, stream)); }

absl::StatusOr<v1::PartialAnswer> RelayService::TakePartial(grpc::ServerContext* context,
                                                            grpc::ServerReaderWriter<v1::PartialAnswer, v1::PartialMessage>* stream, StreamEnd* stall) {
  TRIB_ASSIGN_OR_RETURN(const Caller caller, Authenticate(*context, options_.identities));
  const auto refused = [](const absl::Status& why) {
    v1::PartialAnswer answer;
    answer.set_state(v1::PARTIAL_STATE_REFUSED);
    answer.set_reason(MessageOf(why));
    return answer;
  };
  const auto next = [&](v1::PartialMessage* message) {
    stall->set_deadline(options_.clock->Now() + options_.stall_timeout);
    const bool read = stream->Read(message);
    stall->clear_deadline();
    return read;
  };
  v1::PartialMessage message;
  if (!next(&message) || !message.has_header()) return InvalidArgument("PushPartial: the first message must be the header");
  const absl::StatusOr<CheckedPartial> partial = PartialFromProto(message.header());
  if (!partial.ok()) return refused(partial.status());
  RelayBackend::PartialRoom room = options_.backend->BeginPartial(caller.client(), *partial);
  if (room.answer.state() != v1::PARTIAL_STATE_SEND) return room.answer;
  if (!stream->Write(room.answer)) return Cancelled("the node went away");
  PartialReceiver receiver(room.sums);
  while (!receiver.complete()) {
    if (!next(&message)) return Cancelled("the node went away");
    if (!message.has_chunk()) return InvalidArgument("PushPartial: expected chunks after the header");
    // A damaged chunk is the network's fault: the node begins again. What its digest or its values show is its own.
    TRIB_RETURN_IF_ERROR(receiver.Take(message.chunk()));
  }
  absl::Status good = receiver.CheckDigest(partial->xxh3_128);
  if (good.ok()) good = CheckSums(room.sums, room.float_bytes, partial->type, partial->contributors.size(), room.limit);
  if (!good.ok()) {
    options_.backend->RefusePartial(caller.client(), *partial, MessageOf(good));
    return refused(good);
  }
  return options_.backend->FinishPartial(caller.client(), *partial, room.sums);
}

grpc::Status RelayService::PushPartial(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::PartialAnswer, v1::PartialMessage>* stream) {
  const auto stall = std::make_shared<DetachableEnd>([context] { context->TryCancel(); });
  options_.watch->Add(stall, "byte of a partial");
  const absl::StatusOr<v1::PartialAnswer> answer = TakePartial(context, stream, stall.get());
  stall->Detach();
  if (!answer.ok()) return ToGrpc(answer.status());
  stream->Write(*answer);
  return grpc::Status::OK;
}

grpc::Status RelayService::GetVersion(grpc::ServerContext* context, const v1::RelayVersionRequest* request, v1::RelayVersion* response) {
  const absl::StatusOr<Caller> caller = Authenticate(*context, options_.identities);
  if (!caller.ok()) return ToGrpc(caller.status());
  if (const absl::Status status = CheckVersionRequest(*request); !status.ok()) return ToGrpc(status);
  absl::StatusOr<v1::RelayVersion> version = options_.backend->RelayGetVersion(caller->client(), request->job(), request->version());
  if (!version.ok()) return ToGrpc(version.status());
  *response = *std::move(version);
  return grpc::Status::OK;
}

}  // namespace tributary::aggregator
