// One loopback TCP connection with both ends in this process: the two ends of an anchor. Plain TCP (never MPTCP), no delay, CLOEXEC.
// The peer's name is compared with our own, so that a stranger who connects to the short-lived listener is not taken for our end.
// Threads: safe. Errors: errno's; ABORTED when strangers kept coming first.
#pragma once

#include <cstdint>
#include <functional>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

struct AnchorPair {
  UniqueFd daemon_end;  // non-blocking
  UniqueFd worker_end;
};
// `on_listening` is a test's way in: called with the listener's port before our own connection is made.
absl::StatusOr<AnchorPair> MakeAnchorPair(const std::function<void(uint16_t port)>& on_listening = nullptr);

// Closes the daemon's end on purpose: the connection is reset, so that its port is free at once. A plain close would keep it for a minute
// (TIME_WAIT), and a daemon that replaces many workers would run out of ports. A crash closes plainly, and the worker's end lives on.
void ResetAndClose(UniqueFd& daemon_end);

}  // namespace tributary::aggregator
