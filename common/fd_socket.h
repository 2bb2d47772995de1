// Records over AF_UNIX SOCK_SEQPACKET sockets, with file descriptors riding along (SCM_RIGHTS). One send is one record.
// What the bytes mean is the caller's; the peer is untrusted: surplus descriptors are received and closed, never leaked.
// Threads: thread-compatible per socket. Errors: UNAVAILABLE when the peer is gone, DEADLINE_EXCEEDED when it neither reads nor
// writes in time, INVALID_ARGUMENT for a record that is too long. `what` begins every message.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary {

// At most this many descriptors a record.
inline constexpr size_t kMaxRecordFds = 16;

absl::Status SendRecord(int socket, std::span<const std::byte> record, std::span<const int> fds, absl::Duration timeout,
                        const std::string& what);

struct ReceivedRecord {
  std::vector<std::byte> bytes;
  std::vector<UniqueFd> fds;  // CLOEXEC
};
absl::StatusOr<ReceivedRecord> ReceiveRecord(int socket, size_t max_bytes, absl::Duration timeout, const std::string& what);

// Sockets in Linux's abstract namespace: no file to clean up, gone with the last descriptor, visible within one network namespace.
absl::StatusOr<UniqueFd> ListenAbstract(const std::string& name, int backlog);
absl::StatusOr<UniqueFd> ConnectAbstract(const std::string& name);  // UNAVAILABLE when nobody listens

// Effective user of the process at the other end, as the kernel saw it when the connection was made.
absl::StatusOr<uid_t> PeerUser(int socket);

}  // namespace tributary
