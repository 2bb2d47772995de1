// absl::Status <-> grpc::Status, in this one file. The codes have the same numbers; messages are cut to kMaxStatusMessage bytes so
// that trailers stay under HTTP/2 header limits.
//
// A retry delay travels twice: as google.rpc.RetryInfo in the status details (what clients of any language look for), and as the
// trailing metadata `grpc-retry-pushback-ms` (what gRPC's own retry logic obeys).
// Threads: functions are pure; AddRetryDelay belongs to the call's thread.
#pragma once

#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <optional>

#include "common/status.h"

namespace tributary {

inline constexpr size_t kMaxStatusMessage = 1024;
inline constexpr char kRetryPushback[] = "grpc-retry-pushback-ms";

// `retry_delay`: put into the status details if given and > 0.
grpc::Status ToGrpc(const absl::Status& status, std::optional<absl::Duration> retry_delay = std::nullopt);
// A code outside the canonical ones becomes UNKNOWN.
absl::Status FromGrpc(const grpc::Status& status);

// The delay in a status' details; nothing if there is none, or if it is not a positive time of at most one hour.
std::optional<absl::Duration> RetryDelayOf(const grpc::Status& status);
// Adds the trailing metadata. Before Finish.
void AddRetryDelay(grpc::ServerContextBase& context, absl::Duration delay);

}  // namespace tributary
