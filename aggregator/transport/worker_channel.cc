#include "aggregator/transport/worker_channel.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "common/abi/dataplane_abi.h"
#include "common/fd_socket.h"

namespace tributary::aggregator {
namespace {

constexpr uint32_t kMagic = 0x31435754u;  // "TWC1"

// One record on the socket. Both ends are programs of one build; magic and version catch a mix.
struct Record {
  uint32_t magic;
  uint32_t abi_version;
  WorkerMessage message;
};
static_assert(std::is_trivially_copyable_v<Record>);

bool Terminated(const char* text, size_t size) { return std::memchr(text, 0, size) != nullptr; }

absl::Status CheckRecord(const Record& record, size_t bytes, size_t fds) {
  if (bytes != sizeof(Record)) return InvalidArgument("worker channel: expected {} bytes, got {}", sizeof(Record), bytes);
  if (record.magic != kMagic || record.abi_version != TB_ABI_VERSION) {
    return InvalidArgument("worker channel: expected magic {:#x} version {}, got {:#x} version {}", kMagic, TB_ABI_VERSION,
                           record.magic, record.abi_version);
  }
  const auto kind = static_cast<uint32_t>(record.message.kind);
  const int expected = FdsOf(record.message.kind);
  if (expected < 0) return InvalidArgument("worker channel: unknown kind {}", kind);
  if (static_cast<size_t>(expected) != fds) {
    return InvalidArgument("worker channel: kind {}: expected {} file descriptors, got {}", kind, expected, fds);
  }
  if (!Terminated(record.message.reducer, sizeof(record.message.reducer)) ||
      !Terminated(record.message.reason, sizeof(record.message.reason))) {
    return InvalidArgument("worker channel: kind {}: text without end", kind);
  }
  return absl::OkStatus();
}

}  // namespace

int FdsOf(WorkerMessageKind kind) {
  switch (kind) {
    case WorkerMessageKind::kHello:
    case WorkerMessageKind::kOpenJob:
    case WorkerMessageKind::kChild:
    case WorkerMessageKind::kParent:
      return 2;
    case WorkerMessageKind::kSegment:
    case WorkerMessageKind::kAnchor:
      return 1;
    case WorkerMessageKind::kCloseJob:
    case WorkerMessageKind::kStop:
    case WorkerMessageKind::kReplay:
    case WorkerMessageKind::kPing:
    case WorkerMessageKind::kPong:
    case WorkerMessageKind::kReady:
    case WorkerMessageKind::kRefused:
    case WorkerMessageKind::kFailed:
    case WorkerMessageKind::kRole:
    case WorkerMessageKind::kRoleTaken:
    case WorkerMessageKind::kComplete:
    case WorkerMessageKind::kMerged:
      return 0;
  }
  return -1;
}

const char* SeatRoleName(SeatRole role) {
  switch (role) {
    case SeatRole::kRange: return "range";
    case SeatRole::kLeaf: return "leaf";
    case SeatRole::kMiddle: return "middle";
    case SeatRole::kTop: return "top";
    case SeatRole::kParked: break;
  }
  return "parked";
}

absl::StatusOr<std::pair<WorkerChannel, UniqueFd>> WorkerChannel::CreatePair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) return ErrnoStatus(errno, "worker channel: socketpair");
  return std::make_pair(WorkerChannel(UniqueFd(fds[0])), UniqueFd(fds[1]));
}

absl::Status WorkerChannel::Send(const WorkerMessage& message, std::vector<int> fds) {
  Record record;
  std::memset(static_cast<void*>(&record), 0, sizeof(record));
  record.magic = kMagic;
  record.abi_version = TB_ABI_VERSION;
  record.message = message;
  TRIB_RETURN_IF_ERROR(CheckRecord(record, sizeof(record), fds.size()));
  return SendRecord(socket_.get(), std::as_bytes(std::span(&record, 1)), fds, kSendTimeout, "worker channel");
}

absl::StatusOr<WorkerChannel::Received> WorkerChannel::Receive(absl::Duration timeout) {
  TRIB_ASSIGN_OR_RETURN(ReceivedRecord raw, ReceiveRecord(socket_.get(), sizeof(Record), timeout, "worker channel"));
  if (raw.bytes.size() != sizeof(Record)) {
    return InvalidArgument("worker channel: expected {} bytes, got {}", sizeof(Record), raw.bytes.size());
  }
  Record record;
  Received received;
  received.fds = std::move(raw.fds);
  std::memcpy(static_cast<void*>(&record), raw.bytes.data(), sizeof(record));
  TRIB_RETURN_IF_ERROR(CheckRecord(record, raw.bytes.size(), received.fds.size()));
  received.message = record.message;
  return received;
}

}  // namespace tributary::aggregator
