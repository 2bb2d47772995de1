#include "aggregator/ingress/identity.h"

#include "common/ids.h"
#include "proto/codec.h"

namespace tributary::aggregator {
namespace {

absl::StatusOr<std::string> OneValue(const grpc::ServerContextBase& context, const char* key) {
  const auto range = context.client_metadata().equal_range(key);
  if (range.first == range.second) return Unauthenticated("metadata '{}' is missing", key);
  if (std::next(range.first) != range.second) return Unauthenticated("metadata '{}' is given more than once", key);
  const grpc::string_ref value = range.first->second;
  return std::string(value.data(), value.size());
}

}  // namespace

absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase& context, FederationBackend* backend) {
  TRIB_ASSIGN_OR_RETURN(const std::string client, OneValue(context, "tributary-client"));
  TRIB_ASSIGN_OR_RETURN(const std::string secret, OneValue(context, "tributary-secret"));
  return Authenticate(client, secret, backend);
}

absl::StatusOr<Caller> Authenticate(const std::string& client, const std::string& secret, FederationBackend* backend) {
  if (const absl::Status status = ValidateClientId(client); !status.ok())
    return Unauthenticated("metadata 'tributary-client': {}", MessageOf(status));
  if (const absl::Status status = CheckSecret(secret); !status.ok())
    return Unauthenticated("metadata 'tributary-secret': {}", MessageOf(status));
  TRIB_RETURN_IF_ERROR(backend->Authenticate(client, secret));
  return Caller(client);
}

}  // namespace tributary::aggregator
