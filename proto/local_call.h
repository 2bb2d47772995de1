// One request over an aggregator's local socket (local_server.h), from a program of the same host and user.
// Threads: functions are safe. Errors: UNAVAILABLE: not reachable, or the aggregator is gone; PERMISSION_DENIED: it runs as another
// user; CANCELLED when `cancelled` says so; DEADLINE_EXCEEDED; else what the aggregator answers.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/unique_fd.h"
#include "tributary/v1/federation.pb.h"

namespace tributary {

// A request with its descriptors is one record. A longer one is refused (INVALID_ARGUMENT) by both ends.
inline constexpr size_t kMaxLocalRequestBytes = 96 * 1024;

// Whether this is the name of a socket as a Welcome or a Node gives it. Programs talk to no other: the server may be anybody.
bool IsLocalAddress(const std::string& address);

// Connected, and the other end is one's own user's: whatever fails from here on, the aggregator may have had the request.
absl::StatusOr<UniqueFd> ConnectLocally(const std::string& address);

struct LocalReply {
  v1::LocalAnswer message;  // code 0
  std::vector<UniqueFd> fds;
};
absl::StatusOr<LocalReply> AskLocally(int socket, const v1::LocalRequest& request, std::span<const int> fds, absl::Duration timeout,
                                      const std::function<bool()>& cancelled = {});

// How long an answer may take that moves so many bytes on one host: a slow disk or machine, not a slow network.
absl::Duration LocalTimeout(uint64_t bytes);

}  // namespace tributary
