#include "aggregator/ingress/federation_service.h"

#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

template <typename Message>
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::StatusOr<Message>& result, absl::Duration retry,
                                 grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (result.ok()) {
    *response = SerializeMessage(*result);
    reactor->Finish(grpc::Status::OK);
  } else {
    AddRetryDelay(*context, retry);
    reactor->Finish(ToGrpc(result.status(), retry));
  }
  return reactor;
}

}  // namespace

AttachReactor* FederationService::Attach(grpc::CallbackServerContext* context) {
  absl::StatusOr<Caller> caller = Authenticate(*context, ingress_.backend);
  if (!caller.ok()) return new RefusingReactor<AttachReactor>(caller.status());
  return MakeAttachReactor(ingress_, *std::move(caller), context);
}

FetchReactor* FederationService::FetchModel(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const absl::StatusOr<Caller> caller = Authenticate(*context, ingress_.backend);
  if (!caller.ok()) return new RefusingReactor<FetchReactor>(caller.status());
  const auto parsed = ParseMessage<v1::FetchModelRequest>(*request);
  if (!parsed.ok()) return new RefusingReactor<FetchReactor>(parsed.status());
  if (const absl::Status status = CheckFetch(*parsed); !status.ok()) return new RefusingReactor<FetchReactor>(status);
  return MakeFetchReactor(ingress_, *caller, context, *parsed);
}

PushReactor* FederationService::PushUpdate(grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  absl::StatusOr<Caller> caller = Authenticate(*context, ingress_.backend);
  if (!caller.ok()) return new RefusingReactor<PushReactor>(caller.status());
  return MakePushReactor(ingress_, *std::move(caller), context, response);
}

absl::StatusOr<v1::UpdateStatus> FederationService::Begin(const grpc::CallbackServerContext& context, const grpc::ByteBuffer& request,
                                                          absl::Duration* retry) {
  TRIB_ASSIGN_OR_RETURN(const Caller caller, Authenticate(context, ingress_.backend));
  TRIB_ASSIGN_OR_RETURN(const v1::BeginUploadRequest parsed, ParseMessage<v1::BeginUploadRequest>(request));
  TRIB_ASSIGN_OR_RETURN(const CheckedUpload upload, UploadFromProto(parsed));
  return ingress_.uploads->Begin(caller, upload, retry);
}

grpc::ServerUnaryReactor* FederationService::BeginUpload(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  absl::Duration retry;
  const auto result = Begin(*context, *request, &retry);
  return Answer(context, result, retry, response);
}

absl::StatusOr<v1::QueryUpdateResponse> FederationService::Query(const grpc::CallbackServerContext& context,
                                                                 const grpc::ByteBuffer& request) {
  TRIB_ASSIGN_OR_RETURN(const Caller caller, Authenticate(context, ingress_.backend));
  TRIB_ASSIGN_OR_RETURN(const v1::QueryUpdateRequest parsed, ParseMessage<v1::QueryUpdateRequest>(request));
  TRIB_RETURN_IF_ERROR(CheckQuery(parsed));
  v1::QueryUpdateResponse out;
  for (const v1::UpdateKey& message : parsed.keys()) {
    TRIB_ASSIGN_OR_RETURN(const CheckedKey key, KeyFromProto(message));
    std::optional<v1::UpdateStatus> partial = ingress_.uploads->Find(caller, key);
    *out.add_updates() = partial.has_value() ? *std::move(partial) : ingress_.backend->Query(caller.client(), message);
  }
  return out;
}

grpc::ServerUnaryReactor* FederationService::QueryUpdate(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  const auto result = Query(*context, *request);
  return Answer(context, result, absl::ZeroDuration(), response);
}

}  // namespace tributary::aggregator
