// Service Federation on gRPC's callback API. All methods take raw byte buffers: PushUpdate and FetchModel to move payload without
// extra copies (proto/chunk_codec.h), the others so that a malformed message gets INVALID_ARGUMENT instead of a dead stream.
// One reactor class per streaming method, in push.cc, fetch.cc and attach.cc.
// Lifetime: what Context points to must outlive the service. Threads: safe.
#pragma once

#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include "aggregator/ingress/backend.h"
#include "aggregator/ingress/chunk_crcs.h"
#include "aggregator/ingress/identity.h"
#include "aggregator/ingress/stream_watch.h"
#include "aggregator/ingress/upload_table.h"
#include "common/clock.h"
#include "common/status.h"
#include "proto/grpc_status.h"
#include "tributary/v1/federation.grpc.pb.h"

namespace tributary::aggregator {

struct IngressContext {
  FederationBackend* backend = nullptr;
  UploadTable* uploads = nullptr;
  StreamWatch* watch = nullptr;
  ChunkCrcCache* crcs = nullptr;
  const Clock* clock = nullptr;
  size_t chunk_bytes = 0;
  size_t control_queue = 0;
  std::string local_address;  // for the Welcome; empty: no local transfer
  absl::Duration hello_timeout;
  absl::Duration stall_timeout;
};

using PushReactor = grpc::ServerReadReactor<grpc::ByteBuffer>;
using FetchReactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;
using AttachReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// Each makes a reactor that owns itself, for an authenticated caller.
PushReactor* MakePushReactor(const IngressContext& ingress, Caller caller, grpc::CallbackServerContext* context,
                             grpc::ByteBuffer* response);
FetchReactor* MakeFetchReactor(const IngressContext& ingress, const Caller& caller, grpc::CallbackServerContext* context,
                               const v1::FetchModelRequest& request);
AttachReactor* MakeAttachReactor(const IngressContext& ingress, Caller caller, grpc::CallbackServerContext* context);

// A reactor that refuses the call.
template <typename Base>
class RefusingReactor final : public Base {
 public:
  explicit RefusingReactor(const absl::Status& status) { this->Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

template <typename Message>
absl::StatusOr<Message> ParseMessage(grpc::ByteBuffer buffer) {
  Message message;
  if (!buffer.Valid() || buffer.Length() == 0) return message;
  if (!grpc::SerializationTraits<Message>::Deserialize(&buffer, &message).ok())
    return InvalidArgument("malformed {}", message.GetDescriptor()->full_name());
  return message;
}

template <typename Message>
grpc::ByteBuffer SerializeMessage(const Message& message) {
  grpc::ByteBuffer out;
  bool own = false;
  // Fails only for a message over 2 GiB; the peer then finds an empty one.
  if (!grpc::SerializationTraits<Message>::Serialize(message, &out, &own).ok()) out.Clear();
  return out;
}

class FederationService final
    : public v1::Federation::WithRawCallbackMethod_Attach<v1::Federation::WithRawCallbackMethod_FetchModel<
          v1::Federation::WithRawCallbackMethod_BeginUpload<v1::Federation::WithRawCallbackMethod_PushUpdate<
              v1::Federation::WithRawCallbackMethod_QueryUpdate<v1::Federation::Service>>>>> {
 public:
  explicit FederationService(const IngressContext& ingress) : ingress_(ingress) {}

  AttachReactor* Attach(grpc::CallbackServerContext* context) override;
  FetchReactor* FetchModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* BeginUpload(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  PushReactor* PushUpdate(grpc::CallbackServerContext* context, grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* QueryUpdate(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;

 private:
  absl::StatusOr<v1::UpdateStatus> Begin(const grpc::CallbackServerContext& context, const grpc::ByteBuffer& request,
                                         absl::Duration* retry);
  absl::StatusOr<v1::QueryUpdateResponse> Query(const grpc::CallbackServerContext& context, const grpc::ByteBuffer& request);

  const IngressContext ingress_;
};

}  // namespace tributary::aggregator
