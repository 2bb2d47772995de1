#include "aggregator/transport/registration.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "common/file.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

absl::StatusOr<sockaddr_un> Address(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string text = path.string();
  if (text.size() >= sizeof(address.sun_path)) {
    return InvalidArgument("registration socket '{}': expected a path below {} bytes, got {}", text, sizeof(address.sun_path), text.size());
  }
  std::memcpy(address.sun_path, text.data(), text.size());
  return address;
}

// One record, and with it at most one fd.
absl::Status SendRecord(int socket, const tb_register_reply& reply, int fd) {
  iovec part{const_cast<tb_register_reply*>(&reply), sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
  }
  if (::sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof(reply))) return absl::OkStatus();
  return ErrnoStatus(errno, "registration: answer");
}

struct Received {
  ssize_t bytes = 0;
  UniqueFd fd;
};
// Surplus fds are closed. A record longer than `size` yields `size` + 1.
absl::StatusOr<Received> ReceiveRecord(int socket, void* record, size_t size) {
  std::array<std::byte, 512> buffer;
  iovec part{buffer.data(), size + 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 16)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  Received received;
  do {
    received.bytes = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (received.bytes < 0 && errno == EINTR);
  if (received.bytes < 0) return ErrnoStatus(errno, "registration: receive");
  for (cmsghdr* entry = CMSG_FIRSTHDR(&header); entry != nullptr; entry = CMSG_NXTHDR(&header, entry)) {
    if (entry->cmsg_level != SOL_SOCKET || entry->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= entry->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<char*>(entry) + at, sizeof(fd));
      UniqueFd owned(fd);
      if (!received.fd.valid()) received.fd = std::move(owned);
    }
  }
  std::memcpy(record, buffer.data(), std::min(static_cast<size_t>(received.bytes), size));
  return received;
}

tb_register_reply ReplyOf(const absl::StatusOr<Anchors::Anchor>& anchor) {
  tb_register_reply reply{};
  reply.magic = kRegisterMagic;
  reply.abi_version = TB_ABI_VERSION;
  reply.status = static_cast<uint32_t>(anchor.status().code());
  if (anchor.ok()) {
    reply.id = anchor->id;
    reply.domain = anchor->domain;
    reply.epoch = anchor->epoch;
  } else {
    const std::string reason = MessageOf(anchor.status());
    std::memcpy(reply.reason, reason.data(), std::min(reason.size(), sizeof(reply.reason) - 1));
  }
  return reply;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Registrar>> Registrar::Create(const std::filesystem::path& folder, Anchors* anchors) {
  TRIB_RETURN_IF_ERROR(MakeDirectories(folder));
  UniqueFd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat info {};
  if (!lock.valid() || ::fstat(lock.get(), &info) != 0) return ErrnoStatus(errno, fmt::format("registration folder '{}'", folder.string()));
  if (info.st_uid != ::geteuid() || (info.st_mode & 077) != 0) {
    return FailedPrecondition("registration folder '{}': expected it to be ours (uid {}) with mode 0700, got uid {} and mode {:04o}",
                              folder.string(), ::geteuid(), info.st_uid, info.st_mode & 07777);
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return FailedPrecondition("registration folder '{}': another daemon listens in it", folder.string());
  std::unique_ptr<Registrar> registrar(new Registrar(folder / "register.sock", anchors));
  registrar->lock_ = std::move(lock);
  TRIB_ASSIGN_OR_RETURN(const sockaddr_un address, Address(registrar->path_));
  ::unlink(registrar->path_.c_str());  // a crashed predecessor's: we hold the lock
  registrar->listener_ = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!registrar->listener_.valid() ||
      ::bind(registrar->listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(registrar->listener_.get(), static_cast<int>(kMaxConnections)) != 0) {
    return ErrnoStatus(errno, fmt::format("registration socket '{}'", registrar->path_.string()));
  }
  registrar->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = registrar->listener_.get();
  if (!registrar->epoll_.valid() || ::epoll_ctl(registrar->epoll_.get(), EPOLL_CTL_ADD, event.data.fd, &event) != 0) {
    return ErrnoStatus(errno, "registration: epoll");
  }
  return registrar;
}

Registrar::~Registrar() { ::unlink(path_.c_str()); }

void Registrar::Expect(pid_t pid, uid_t uid, uint32_t id, uint32_t domain) { expected_[pid] = {uid, id, domain}; }
void Registrar::NoLonger(pid_t pid) { expected_.erase(pid); }

void Registrar::Accept(absl::Time now) {
  while (connections_.size() < kMaxConnections) {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) return;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd.get();
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) continue;
    const int number = fd.get();
    connections_[number] = {std::move(fd), now};
  }
}

// Closing alone would leave it in the epoll set while a child that is just being spawned still has its copy.
void Registrar::Close(int connection) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection, nullptr);
  connections_.erase(connection);
}

std::vector<Registrar::Served> Registrar::Serve(absl::Time now) {
  std::vector<int> silent;
  for (const auto& [fd, connection] : connections_) {
    if (now - connection.since >= kRequestTimeout) silent.push_back(fd);
  }
  for (const int fd : silent) Close(fd);
  std::vector<Served> served;
  std::array<epoll_event, kMaxConnections + 1> events;
  // Twice: a request usually lies there already when its connection is accepted.
  for (int round = 0; round < 2; ++round) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == listener_.get()) {
        Accept(now);
        continue;
      }
      const absl::StatusOr<Anchors::Anchor> anchor = Handle(fd);
      if (!anchor.ok()) {
        ++refused_;
        TRIB_LOG(warn, "a registration was refused: {}", MessageOf(anchor.status()));
      }
      const absl::Status sent = SendRecord(fd, ReplyOf(anchor), anchor.ok() ? anchor->worker_end.get() : -1);
      if (!sent.ok()) TRIB_LOG(warn, "a registration was not answered: {}", MessageOf(sent));
      if (anchor.ok() && sent.ok()) served.push_back({anchor->id, anchor->epoch});
      Close(fd);
    }
  }
  return served;
}

absl::StatusOr<Anchors::Anchor> Registrar::Handle(int connection) {
  tb_register_request request{};
  TRIB_ASSIGN_OR_RETURN(const Received received, ReceiveRecord(connection, &request, sizeof(request)));
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return ErrnoStatus(errno, "registration: SO_PEERCRED");
  if (received.bytes != static_cast<ssize_t>(sizeof(request))) {
    return InvalidArgument("registration of pid {}: expected {} bytes, got {}", peer.pid, sizeof(request), received.bytes);
  }
  if (received.fd.valid()) return InvalidArgument("registration of pid {}: expected no file descriptor", peer.pid);
  if (request.magic != kRegisterMagic || request.abi_version != TB_ABI_VERSION || request.reserved != 0) {
    return InvalidArgument("registration of pid {}: expected magic {:#x} version {}, got {:#x} version {}", peer.pid, kRegisterMagic,
                           TB_ABI_VERSION, request.magic, request.abi_version);
  }
  const auto found = expected_.find(peer.pid);
  if (found == expected_.end()) return PermissionDenied("registration of pid {}: it is no process of this daemon", peer.pid);
  const Expected& expected = found->second;
  if (expected.uid != peer.uid) {
    return PermissionDenied("registration of pid {}: expected uid {}, got {}", peer.pid, expected.uid, peer.uid);
  }
  if (expected.id != request.id) return PermissionDenied("registration of pid {}: expected id {}, got {}", peer.pid, expected.id, request.id);
  absl::StatusOr<Anchors::Anchor> anchor = anchors_->Add(expected.id, expected.domain);
  // It had one: the new one takes its place.
  if (anchor.status().code() == absl::StatusCode::kAlreadyExists) anchor = anchors_->Recycle(expected.id);
  return anchor;
}

absl::StatusOr<Anchors::Anchor> RegisterAnchor(const std::filesystem::path& path, uint32_t id, absl::Duration timeout) {
  TRIB_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus(errno, "registration: socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, fmt::format("registration socket '{}'", path.string()));
  }
  const tb_register_request request{kRegisterMagic, TB_ABI_VERSION, id, 0};
  if (::send(socket.get(), &request, sizeof(request), MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof(request))) {
    return ErrnoStatus(errno, "registration: send");
  }
  pollfd entry{socket.get(), POLLIN, 0};
  const timespec limit = absl::ToTimespec(timeout);
  if (::ppoll(&entry, 1, &limit, nullptr) <= 0) return DeadlineExceeded("registration: no answer within {}", absl::FormatDuration(timeout));
  tb_register_reply reply{};
  TRIB_ASSIGN_OR_RETURN(Received received, ReceiveRecord(socket.get(), &reply, sizeof(reply)));
  if (received.bytes == 0) return Unavailable("registration: the daemon closed the connection");
  if (received.bytes != static_cast<ssize_t>(sizeof(reply)) || reply.magic != kRegisterMagic || reply.abi_version != TB_ABI_VERSION) {
    return InvalidArgument("registration: expected an answer of {} bytes, version {}, got {} bytes, version {}", sizeof(reply), TB_ABI_VERSION,
                           received.bytes, reply.abi_version);
  }
  if (reply.status != 0) {
    reply.reason[sizeof(reply.reason) - 1] = '\0';
    return absl::Status(static_cast<absl::StatusCode>(reply.status), std::string(reply.reason));
  }
  if (!received.fd.valid()) return InvalidArgument("registration: expected the anchor's file descriptor, got none");
  return Anchors::Anchor{reply.id, reply.domain, reply.epoch, std::move(received.fd)};
}

}  // namespace tributary::aggregator
