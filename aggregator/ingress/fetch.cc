// FetchModel: chunks of an immutable object, from an offset, straight from the object's own memory.
#include <algorithm>
#include <memory>

#include "aggregator/ingress/federation_service.h"
#include "proto/chunk_codec.h"

namespace tributary::aggregator {
namespace {

class Fetch final : public FetchReactor {
 public:
  Fetch(const IngressContext& ingress, grpc::CallbackServerContext* context, std::string job, Blob blob, uint64_t offset)
      : ingress_(ingress), job_(std::move(job)), blob_(std::move(blob)), crcs_(ingress.crcs->Get(blob_.sha256, blob_.bytes.size())),
        offset_(offset),
        // A client that does not read leaves a write pending, and a status could not overtake it: so the call is cancelled.
        stall_(std::make_shared<DetachableEnd>([context] { context->TryCancel(); })) {
    ingress_.watch->Add(stall_, "byte of a fetch read");
    Write();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(ToGrpc(Unavailable("the client does not read")));
    buffer_.Clear();
    sent_ += last_bytes_;
    offset_ += last_bytes_;
    if (offset_ == blob_.bytes.size()) return Finish(grpc::Status::OK);
    Write();
  }

  void OnDone() override {
    stall_->Detach();
    ingress_.backend->CountDownload(job_, sent_);
    delete this;
  }

 private:
  void Write() {
    ChunkFields fields;
    fields.offset = offset_;
    // Up to the next multiple of the chunk size, so that after a resume the chunks (and their CRCs) are everybody's again.
    last_bytes_ = std::min<uint64_t>(blob_.bytes.size() - offset_, ingress_.chunk_bytes - offset_ % ingress_.chunk_bytes);
    fields.crc32c = crcs_->Of(blob_.bytes, offset_, last_bytes_);
    if (first_) {
      fields.total_bytes = blob_.bytes.size();
      fields.sha256 = blob_.sha256;
      fields.xxh3_128 = blob_.xxh3_128;
      first_ = false;
    }
    buffer_ = EncodeChunk(fields, blob_.bytes.subspan(offset_, last_bytes_), blob_.owner);
    stall_->set_deadline(ingress_.clock->Now() + ingress_.stall_timeout);
    StartWrite(&buffer_);
  }

  const IngressContext ingress_;
  const std::string job_;
  const Blob blob_;
  const std::shared_ptr<ChunkCrcs> crcs_;
  uint64_t offset_ = 0;
  uint64_t last_bytes_ = 0;
  uint64_t sent_ = 0;
  bool first_ = true;
  grpc::ByteBuffer buffer_;
  const std::shared_ptr<DetachableEnd> stall_;  // shared with the watch
};

}  // namespace

absl::StatusOr<Blob> FindBlob(FederationBackend& backend, const std::string& client, const v1::FetchModelRequest& request) {
  if (request.artifact()) return backend.Artifact(client, request.job());
  if (request.client_row()) return backend.ClientRow(client, request.job());
  if (request.has_fitness_after()) return backend.Fitness(client, request.job(), request.fitness_after(), request.version());
  if (request.vectors()) return backend.Vectors(client, request.job(), request.version());
  return backend.Model(client, request.job(), request.version());
}

FetchReactor* MakeFetchReactor(const IngressContext& ingress, const Caller& caller, grpc::CallbackServerContext* context,
                               const v1::FetchModelRequest& request) {
  absl::StatusOr<Blob> blob = FindBlob(*ingress.backend, caller.client(), request);
  if (!blob.ok()) return new RefusingReactor<FetchReactor>(blob.status());
  if (request.offset() > blob->bytes.size()) {
    return new RefusingReactor<FetchReactor>(
        OutOfRange("offset: expected at most {}, the size of what is fetched, got {}", blob->bytes.size(), request.offset()));
  }
  return new Fetch(ingress, context, request.job(), *std::move(blob), request.offset());
}

}  // namespace tributary::aggregator
