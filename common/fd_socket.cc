#include "common/fd_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace tributary {
namespace {

// Up to `timeout` for `events`; false: nothing came.
bool PollFor(int fd, short events, absl::Duration timeout) {
  pollfd entry{fd, events, 0};
  const timespec limit = absl::ToTimespec(std::clamp(timeout, absl::ZeroDuration(), absl::Hours(24)));
  return ::ppoll(&entry, 1, &limit, nullptr) > 0;
}

absl::StatusOr<socklen_t> AbstractAddress(const std::string& name, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  if (name.empty() || name.size() + 1 > sizeof(address->sun_path)) {
    return InvalidArgument("abstract socket: expected a name of 1 to {} bytes, got {}", sizeof(address->sun_path) - 1, name.size());
  }
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

}  // namespace

absl::Status SendRecord(int socket, std::span<const std::byte> record, std::span<const int> fds, absl::Duration timeout,
                        const std::string& what) {
  if (fds.size() > kMaxRecordFds) return InvalidArgument("{}: expected at most {} descriptors, got {}", what, kMaxRecordFds, fds.size());
  iovec part{const_cast<std::byte*>(record.data()), record.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxRecordFds)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  while (::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    const int error = errno;
    if (error == EINTR) continue;
    if (error == EPIPE || error == ECONNRESET || error == ENOTCONN) return Unavailable("{}: the peer is gone", what);
    if (error != EAGAIN) return ErrnoStatus(error, what + ": send");
    if (!PollFor(socket, POLLOUT, timeout)) {
      return DeadlineExceeded("{}: the peer has not read for {}", what, absl::FormatDuration(timeout));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ReceivedRecord> ReceiveRecord(int socket, size_t max_bytes, absl::Duration timeout, const std::string& what) {
  if (!PollFor(socket, POLLIN, timeout)) return DeadlineExceeded("{}: nothing came", what);
  ReceivedRecord received;
  received.bytes.resize(max_bytes + 1);  // one more than allowed: a longer record shows
  iovec part{received.bytes.data(), received.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxRecordFds)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t count = 0;
  do {
    count = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EAGAIN) return DeadlineExceeded("{}: nothing came", what);
  if (count < 0 && errno != ECONNRESET) return ErrnoStatus(errno, what + ": receive");
  for (cmsghdr* rights = count < 0 ? nullptr : CMSG_FIRSTHDR(&header); rights != nullptr; rights = CMSG_NXTHDR(&header, rights)) {
    if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) continue;
    const size_t fds = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(rights) + i * sizeof(int), sizeof(fd));
      received.fds.emplace_back(fd);
    }
  }
  if (count <= 0) return Unavailable("{}: the peer is gone", what);
  if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || static_cast<size_t>(count) > max_bytes) {
    return InvalidArgument("{}: expected at most {} bytes and {} descriptors, got more", what, max_bytes, kMaxRecordFds);
  }
  received.bytes.resize(static_cast<size_t>(count));
  return received;
}

absl::StatusOr<UniqueFd> ListenAbstract(const std::string& name, int backlog) {
  sockaddr_un address;
  TRIB_ASSIGN_OR_RETURN(const socklen_t size, AbstractAddress(name, &address));
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "abstract socket: socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) return ErrnoStatus(errno, "abstract socket '" + name + "': bind");
  if (::listen(fd.get(), backlog) != 0) return ErrnoStatus(errno, "abstract socket '" + name + "': listen");
  return fd;
}

absl::StatusOr<UniqueFd> ConnectAbstract(const std::string& name) {
  sockaddr_un address;
  TRIB_ASSIGN_OR_RETURN(const socklen_t size, AbstractAddress(name, &address));
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "abstract socket: socket");
  int result = 0;
  do {
    result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size);
  } while (result != 0 && errno == EINTR);
  if (result != 0) return Unavailable("abstract socket '{}': {}", name, std::strerror(errno));
  return fd;
}

absl::StatusOr<uid_t> PeerUser(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return ErrnoStatus(errno, "socket: peer credentials");
  return credentials.uid;
}

}  // namespace tributary
