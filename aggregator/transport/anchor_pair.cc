#include "aggregator/transport/anchor_pair.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>

namespace tributary::aggregator {
namespace {

constexpr int kStrangers = 16;

absl::StatusOr<UniqueFd> TcpSocket() {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd.valid()) return ErrnoStatus(errno, "anchor: socket");
  return fd;
}

using NameCall = int (*)(int, sockaddr*, socklen_t*);
absl::StatusOr<sockaddr_in> NameBy(NameCall call, int fd) {
  sockaddr_in name{};
  socklen_t length = sizeof(name);
  if (call(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return ErrnoStatus(errno, "anchor: name of a socket");
  return name;
}

bool SameName(const sockaddr_in& a, const sockaddr_in& b) {
  return a.sin_family == b.sin_family && a.sin_addr.s_addr == b.sin_addr.s_addr && a.sin_port == b.sin_port;
}

}  // namespace

absl::StatusOr<AnchorPair> MakeAnchorPair(const std::function<void(uint16_t)>& on_listening) {
  sockaddr_in loopback{};
  loopback.sin_family = AF_INET;
  loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  TRIB_ASSIGN_OR_RETURN(UniqueFd listener, TcpSocket());
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&loopback), sizeof(loopback)) != 0) return ErrnoStatus(errno, "anchor: bind");
  if (::listen(listener.get(), kStrangers) != 0) return ErrnoStatus(errno, "anchor: listen");
  TRIB_ASSIGN_OR_RETURN(const sockaddr_in listening, NameBy(&::getsockname, listener.get()));
  if (on_listening) on_listening(ntohs(listening.sin_port));

  AnchorPair pair;
  TRIB_ASSIGN_OR_RETURN(pair.worker_end, TcpSocket());
  // To a listener of this host: completes or fails at once, unless strangers have filled its queue.
  const timeval limit{.tv_sec = 1, .tv_usec = 0}, none{};
  if (::setsockopt(pair.worker_end.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0) return ErrnoStatus(errno, "anchor: set SO_SNDTIMEO");
  if (::connect(pair.worker_end.get(), reinterpret_cast<const sockaddr*>(&listening), sizeof(listening)) != 0) {
    return ErrnoStatus(errno, "anchor: connect");
  }
  if (::setsockopt(pair.worker_end.get(), SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none)) != 0) return ErrnoStatus(errno, "anchor: set SO_SNDTIMEO");
  TRIB_ASSIGN_OR_RETURN(const sockaddr_in ours, NameBy(&::getsockname, pair.worker_end.get()));
  for (int i = 0; i <= kStrangers && !pair.daemon_end.valid(); ++i) {
    UniqueFd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!accepted.valid()) return ErrnoStatus(errno, "anchor: accept");
    const absl::StatusOr<sockaddr_in> peer = NameBy(&::getpeername, accepted.get());
    if (peer.ok() && SameName(*peer, ours)) pair.daemon_end = std::move(accepted);
  }
  if (!pair.daemon_end.valid()) return Aborted("anchor: {} connections of strangers came before our own", kStrangers + 1);
  const int on = 1;
  for (const int fd : {pair.daemon_end.get(), pair.worker_end.get()}) {
    if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0) return ErrnoStatus(errno, "anchor: set TCP_NODELAY");
  }
  return pair;
}

void ResetAndClose(UniqueFd& daemon_end) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  if (daemon_end.valid()) ::setsockopt(daemon_end.get(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  daemon_end.Reset();
}

}  // namespace tributary::aggregator
