#include "aggregator/transport/worker_channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>

#include "common/abi/dataplane_abi.h"

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

// Up to `timeout` for `events`; false: nothing came.
bool PollFor(int fd, short events, absl::Duration timeout) {
  pollfd entry{fd, events, 0};
  const timespec limit = absl::ToTimespec(std::clamp(timeout, absl::ZeroDuration(), absl::Hours(24)));
  return ::ppoll(&entry, 1, &limit, nullptr) > 0;
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
      return 1;
    case WorkerMessageKind::kCloseJob:
    case WorkerMessageKind::kStop:
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
  iovec part{&record, sizeof(record)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(rights), fds.data(), sizeof(int) * fds.size());
  }
  while (::sendmsg(socket_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    const int error = errno;
    if (error == EINTR) continue;
    if (error == EPIPE || error == ECONNRESET || error == ENOTCONN) return Unavailable("worker channel: the peer is gone");
    if (error != EAGAIN) return ErrnoStatus(error, "worker channel: send");
    if (!PollFor(socket_.get(), POLLOUT, kSendTimeout)) {
      return DeadlineExceeded("worker channel: the peer has not read for {}", absl::FormatDuration(kSendTimeout));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<WorkerChannel::Received> WorkerChannel::Receive(absl::Duration timeout) {
  if (!PollFor(socket_.get(), POLLIN, timeout)) return DeadlineExceeded("worker channel: nothing came");
  Record record;
  // One byte more than a record: a longer one shows.
  char buffer[sizeof(Record) + 1];
  iovec part{buffer, sizeof(buffer)};
  // Room for more fds than allowed, so that surplus ones are received and closed, not leaked or truncated silently.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 16)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t count = 0;
  do {
    count = ::recvmsg(socket_.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EAGAIN) return DeadlineExceeded("worker channel: nothing came");
  if (count < 0 && errno != ECONNRESET) return ErrnoStatus(errno, "worker channel: receive");
  Received received;
  for (cmsghdr* part_header = count < 0 ? nullptr : CMSG_FIRSTHDR(&header); part_header != nullptr;
       part_header = CMSG_NXTHDR(&header, part_header)) {
    if (part_header->cmsg_level != SOL_SOCKET || part_header->cmsg_type != SCM_RIGHTS) continue;
    const size_t fds = (part_header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part_header) + i * sizeof(int), sizeof(fd));
      received.fds.emplace_back(fd);
    }
  }
  if (count <= 0) return Unavailable("worker channel: the peer is gone");
  if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return InvalidArgument("worker channel: record too long");
  if (static_cast<size_t>(count) != sizeof(Record)) {
    return InvalidArgument("worker channel: expected {} bytes, got {}", sizeof(Record), count);
  }
  std::memcpy(static_cast<void*>(&record), buffer, sizeof(record));
  TRIB_RETURN_IF_ERROR(CheckRecord(record, static_cast<size_t>(count), received.fds.size()));
  received.message = record.message;
  return received;
}

}  // namespace tributary::aggregator
