#include "aggregator/transport/skmsg_endpoint.h"

#include <absl/time/clock.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "aggregator/transport/lane.h"
#include "aggregator/transport/skmsg_lane.h"
#include "common/check.h"

namespace tributary::aggregator {
namespace {

// Room in the socket comes back when the daemon reads its dead letters, which is its event loop's first duty.
constexpr absl::Duration kRoomTimeout = absl::Milliseconds(50);
// Bounds one Drain against a producer that floods: 64 × 4 KiB.
constexpr int kMaxReads = 64;

absl::Status PrepareSocket(int fd) {
  int protocol = 0;
  socklen_t length = sizeof(protocol);
  if (::getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) != 0) return ErrnoStatus(errno, "anchor: getsockopt");
  if (protocol != IPPROTO_TCP) return InvalidArgument("anchor: expected a TCP socket, got protocol {}", protocol);
  // Receive(block) sleeps in the kernel's recv: one system call a wake-up instead of two.
  const timeval limit = absl::ToTimeval(kSafetyTimeout);
  if (::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0) return ErrnoStatus(errno, "anchor: set SO_RCVTIMEO");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SkMsgEndpoint>> SkMsgEndpoint::Create(UniqueFd anchor, uint32_t self, TransportKind kind) {
  if (kind == TransportKind::kRing) return InvalidArgument("anchor: expected an SK_MSG transport, got {}", NameOf(kind));
  if (self == 0) return InvalidArgument("anchor: expected an id > 0, got 0");
  TRIB_RETURN_IF_ERROR(PrepareSocket(anchor.get()));
  return std::unique_ptr<SkMsgEndpoint>(new SkMsgEndpoint(std::move(anchor), self, kind));
}

SkMsgEndpoint::~SkMsgEndpoint() { TRIB_CHECK(ports_.empty(), "endpoint {}: {} lanes outlive it", self_, ports_.size()); }

absl::Status SkMsgEndpoint::Register(PortKey key, Port* port) {
  if (std::get<1>(key) == 0) return InvalidArgument("endpoint {}: a lane needs the id of its other end", self_);
  if (ports_.emplace(key, port).second) return absl::OkStatus();
  return AlreadyExists("endpoint {}: lane {} with {} is open already", self_, std::get<2>(key), std::get<1>(key));
}

void SkMsgEndpoint::Unregister(PortKey key) { ports_.erase(key); }

absl::StatusOr<std::unique_ptr<LaneProducer>> SkMsgEndpoint::OpenProducer(std::span<std::byte> region, const LaneOptions& options) {
  return MakeSkMsgProducer(*this, region, options);
}

absl::StatusOr<std::unique_ptr<LaneConsumer>> SkMsgEndpoint::OpenConsumer(std::span<std::byte> region, const LaneOptions& options) {
  return MakeSkMsgConsumer(*this, region, options, &counters_.stray);
}

int SkMsgEndpoint::wait_fd() const { return gone_ ? edge_epoll_.get() : socket_.get(); }

bool SkMsgEndpoint::Readable() const { return PollIn(wait_fd(), absl::ZeroDuration()); }

SkMsgEndpoint::SendResult SkMsgEndpoint::Send(const tb_desc& record) {
  const absl::Time deadline = absl::Now() + kRoomTimeout;
  while (true) {
    const ssize_t sent = ::send(socket_.get(), &record, sizeof(record), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(sizeof(record))) {
      ++counters_.sent;
      return SendResult::kSent;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return SendResult::kFull;
      pollfd entry{socket_.get(), POLLOUT, 0};
      const timespec limit = absl::ToTimespec(left);
      ::ppoll(&entry, 1, &limit, nullptr);
      continue;
    }
    // The target closed under us, or the daemon is gone: a dead letter that nobody reads. (A part of a record would break the framing of
    // our own dead letters; the daemon then recycles this anchor.)
    ++counters_.send_errors;
    return SendResult::kBroken;
  }
}

void SkMsgEndpoint::Drain() {
  if (gone_) {  // consumes the edge, so that the next poll sleeps
    epoll_event event{};
    ::epoll_wait(edge_epoll_.get(), &event, 1, 0);
  }
  Receive(/*block=*/false);
}

void SkMsgEndpoint::Sleep(absl::Duration timeout, int peer_pidfd) {
  if (!gone_ && peer_pidfd < 0 && timeout == kSafetyTimeout) {
    Receive(/*block=*/true);
  } else if (PollIn(wait_fd(), timeout, peer_pidfd)) {
    Drain();
  }
}

void SkMsgEndpoint::Receive(bool block) {
  for (int reads = 0; reads < kMaxReads; ++reads) {
    const size_t room = buffer_.size() - held_;
    const ssize_t count = ::recv(socket_.get(), buffer_.data() + held_, room, block ? 0 : MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0 || (count < 0 && errno != EAGAIN)) return NoteDaemonGone();
    if (count < 0) return;
    TakeRecords(static_cast<size_t>(count));
    if (static_cast<size_t>(count) < room) return;  // that was all
    block = false;
  }
  if (!gone_) return;
  // More is left, and its edge is spent: ask for another.
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  ::epoll_ctl(edge_epoll_.get(), EPOLL_CTL_MOD, socket_.get(), &event);
}

// A byte stream: several records may come in one read, and one in two.
void SkMsgEndpoint::TakeRecords(size_t bytes) {
  held_ += bytes;
  size_t at = 0;
  for (; held_ - at >= sizeof(tb_desc); at += sizeof(tb_desc)) {
    tb_desc record;
    std::memcpy(&record, buffer_.data() + at, sizeof(record));
    Deliver(record);
  }
  held_ -= at;
  std::memmove(buffer_.data(), buffer_.data() + at, held_);
}

void SkMsgEndpoint::Deliver(const tb_desc& record) {
  ++counters_.received;
  const Role role = record.kind == TB_KIND_CREDIT ? Role::kProducer : Role::kConsumer;
  const auto found = ports_.find(PortKey(role, record.src, record.lane));
  const bool doorbell = record.kind == TB_KIND_CREDIT || record.kind == TB_KIND_DOORBELL;
  if (found == ports_.end() || (!doorbell && kind_ != TransportKind::kSkMsgInline)) {
    ++counters_.stray;
  } else if (doorbell) {
    found->second->OnDoorbell();
  } else {
    found->second->OnRecord(record);
  }
}

void SkMsgEndpoint::NoteDaemonGone() {
  if (gone_) return;
  edge_epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  if (!edge_epoll_.valid() || ::epoll_ctl(edge_epoll_.get(), EPOLL_CTL_ADD, socket_.get(), &event) != 0) return;  // sleepers then nap
  gone_ = true;
}

absl::Status SkMsgEndpoint::ReplaceSocket(UniqueFd anchor) {
  TRIB_RETURN_IF_ERROR(PrepareSocket(anchor.get()));
  Drain();
  held_ = 0;
  edge_epoll_.Reset();
  gone_ = false;
  socket_ = std::move(anchor);
  for (const auto& [key, port] : ports_) port->OnNewSocket();
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
