// PushUpdate: reads chunks one after another and hands each to the upload table.
#include <memory>

#include "aggregator/ingress/federation_service.h"

namespace tributary::aggregator {
namespace {

class Push final : public PushReactor {
 public:
  Push(const IngressContext& ingress, Caller caller, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : ingress_(ingress), caller_(std::move(caller)), context_(context), response_(response),
        // The read under way then completes with ok = false, after which OnDone comes.
        end_(std::make_shared<OnceEnd>([this](const absl::Status& status) { Finish(ToGrpc(status)); })) {
    Extend();
    ingress_.watch->Add(end_, "byte of an upload");
    StartRead(&buffer_);
  }

  void OnReadDone(bool ok) override {
    if (end_->claimed()) return;
    if (!ok) return PeerEnded();
    const absl::StatusOr<v1::UpdateStatus> status = TakeChunk();
    buffer_.Clear();
    if (!status.ok()) return end_->End(status.status());
    last_ = *status;
    bound_ = last_.upload_id() != 0 ? last_.upload_id() : bound_;
    if (last_.state() != v1::UPDATE_STATE_PARTIAL) return Respond();
    Extend();
    StartRead(&buffer_);
  }

  void OnDone() override {
    end_->clear_deadline();
    delete this;
  }

 private:
  absl::StatusOr<v1::UpdateStatus> TakeChunk() {
    TRIB_ASSIGN_OR_RETURN(const ChunkReader chunk, ChunkReader::Parse(buffer_));
    return ingress_.uploads->Push(caller_, end_, bound_, chunk);
  }

  // The client has no more chunks, or is gone (then nobody reads this): what is here stays, and it is told how much that is.
  void PeerEnded() {
    if (context_->IsCancelled()) return end_->End(Cancelled("the client went away"));
    if (bound_ == 0) return end_->End(InvalidArgument("no chunk came: expected at least one"));
    Respond();
  }

  void Respond() {
    if (!end_->Claim()) return;
    *response_ = SerializeMessage(last_);
    Finish(grpc::Status::OK);
  }

  void Extend() { end_->set_deadline(ingress_.clock->Now() + ingress_.stall_timeout); }

  const IngressContext ingress_;
  const Caller caller_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  // Shared with the upload table and the watch, which may end this stream.
  const std::shared_ptr<OnceEnd> end_;
  grpc::ByteBuffer buffer_;
  uint64_t bound_ = 0;
  v1::UpdateStatus last_;
};

}  // namespace

PushReactor* MakePushReactor(const IngressContext& ingress, Caller caller, grpc::CallbackServerContext* context,
                             grpc::ByteBuffer* response) {
  return new Push(ingress, std::move(caller), context, response);
}

}  // namespace tributary::aggregator
