// Who calls. Every method of Federation begins with Authenticate(); what acts for a client takes a Caller, and only Authenticate()
// makes one, so a method that forgets it does not compile.
// Errors: UNAUTHENTICATED when the metadata is missing, doubled or malformed; otherwise what the backend says of the secret.
// Threads: safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "aggregator/ingress/backend.h"
#include "common/status.h"

namespace tributary::aggregator {

class Caller {
 public:
  const std::string& client() const { return client_; }

 private:
  friend absl::StatusOr<Caller> Authenticate(const std::string& client, const std::string& secret, FederationBackend* backend);
  explicit Caller(std::string client) : client_(std::move(client)) {}
  std::string client_;
};

[[nodiscard]] absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase& context, FederationBackend* backend);
[[nodiscard]] absl::StatusOr<Caller> Authenticate(const std::string& client, const std::string& secret, FederationBackend* backend);

}  // namespace tributary::aggregator
