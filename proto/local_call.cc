#include "proto/local_call.h"

#include <unistd.h>

#include <utility>

#include "common/clock.h"
#include "common/fd_socket.h"

namespace tributary {
namespace {

constexpr size_t kMaxAnswerBytes = 64 * 1024;
constexpr absl::Duration kSendTimeout = absl::Seconds(5);
constexpr absl::Duration kSlice = absl::Milliseconds(100);  // how often a wait looks whether it is cancelled
constexpr const char* kWhat = "local transfer";

}  // namespace

bool IsLocalAddress(const std::string& address) {
  constexpr std::string_view kPrefix = "tributary-";
  return address.size() == kPrefix.size() + 32 && address.starts_with(kPrefix) &&
         address.find_first_not_of("0123456789abcdef", kPrefix.size()) == std::string::npos;
}

absl::StatusOr<UniqueFd> ConnectLocally(const std::string& address) {
  TRIB_ASSIGN_OR_RETURN(UniqueFd socket, ConnectAbstract(address));
  TRIB_ASSIGN_OR_RETURN(const uid_t user, PeerUser(socket.get()));
  if (user != ::geteuid()) return PermissionDenied("{}: expected an aggregator of user {}, got one of user {}", kWhat, ::geteuid(), user);
  return socket;
}

absl::StatusOr<LocalReply> AskLocally(int socket, const v1::LocalRequest& request, std::span<const int> fds, absl::Duration timeout,
                                      const std::function<bool()>& cancelled) {
  const std::string bytes = request.SerializeAsString();
  if (bytes.size() > kMaxLocalRequestBytes) {
    return InvalidArgument("{}: expected a request of at most {} bytes, got {}", kWhat, kMaxLocalRequestBytes, bytes.size());
  }
  TRIB_RETURN_IF_ERROR(SendRecord(socket, std::as_bytes(std::span(bytes)), fds, kSendTimeout, kWhat));
  const BootClock clock;
  const absl::Time deadline = clock.Now() + timeout;
  while (true) {
    absl::StatusOr<ReceivedRecord> record = ReceiveRecord(socket, kMaxAnswerBytes, kSlice, kWhat);
    if (absl::IsDeadlineExceeded(record.status()) && clock.Now() < deadline) {
      if (cancelled && cancelled()) return Cancelled("{}: cancelled", kWhat);
      continue;
    }
    if (!record.ok()) return record.status();
    LocalReply reply;
    reply.fds = std::move(record->fds);
    if (!reply.message.ParseFromArray(record->bytes.data(), static_cast<int>(record->bytes.size()))) {
      return Internal("{}: malformed answer", kWhat);
    }
    if (reply.message.code() != 0) return absl::Status(static_cast<absl::StatusCode>(reply.message.code()), reply.message.message());
    return reply;
  }
}

absl::Duration LocalTimeout(uint64_t bytes) { return absl::Seconds(30) + absl::Seconds(static_cast<double>(bytes) / (10 << 20)); }

}  // namespace tributary
