#include "aggregator/transport/anchors.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>

#include "common/log.h"

namespace tributary::aggregator {
namespace {

// A record may be cut by a TCP segment's border and its rest still be on its way; a piece older than this was sent as a piece.
constexpr absl::Duration kPieceGrace = absl::Milliseconds(100);
constexpr size_t kReadBytes = 16 * 1024;  // an anchor and Read

// OK also when there was nothing to delete.
absl::Status IfPresent(absl::Status status) { return status.code() == absl::StatusCode::kNotFound ? absl::OkStatus() : status; }

absl::StatusOr<std::optional<tb_route>> RouteOf(ebpf::VerdictProgram& program, uint32_t id) {
  absl::StatusOr<tb_route> route = program.GetRoute(id);
  if (route.ok()) return std::optional<tb_route>(*route);
  if (route.status().code() == absl::StatusCode::kNotFound) return std::optional<tb_route>();
  return route.status();
}

absl::Status CheckNumbers(uint32_t id, uint32_t domain) {
  if (id == 0 || domain == 0) return InvalidArgument("anchor: expected an id and a domain > 0, got id {} of domain {}", id, domain);
  return absl::OkStatus();
}

absl::Status CheckDomain(uint32_t id, uint32_t domain, const std::optional<tb_route>& route) {
  if (!route || route->domain == domain) return absl::OkStatus();
  return FailedPrecondition("anchor {}: expected domain {}, where it is declared, got {}", id, route->domain, domain);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Anchors>> Anchors::Create(ebpf::VerdictProgram* program, PairMaker make_pair) {
  std::unique_ptr<Anchors> anchors(new Anchors(program, std::move(make_pair)));
  anchors->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!anchors->epoll_.valid()) return ErrnoStatus(errno, "anchors: epoll");
  TRIB_ASSIGN_OR_RETURN(const auto routes, program->Routes());
  for (const auto& [id, route] : routes) anchors->last_id_ = std::max(anchors->last_id_, id);
  return anchors;
}

absl::StatusOr<uint32_t> Anchors::IssueId() {
  if (last_id_ == std::numeric_limits<uint32_t>::max()) return ResourceExhausted("anchors: all ids have been issued");
  return ++last_id_;
}

absl::Status Anchors::Declare(uint32_t id, uint32_t domain) {
  TRIB_RETURN_IF_ERROR(CheckNumbers(id, domain));
  TRIB_ASSIGN_OR_RETURN(const auto route, RouteOf(*program_, id));
  TRIB_RETURN_IF_ERROR(CheckDomain(id, domain, route));
  if (route) return absl::OkStatus();
  last_id_ = std::max(last_id_, id);
  return program_->SetRoute(id, {.domain = domain, .sock = id, .flags = 0, .epoch = 0});
}

absl::Status Anchors::DeclareRemote(uint32_t id, uint32_t domain) {
  TRIB_RETURN_IF_ERROR(CheckNumbers(id, domain));
  if (entries_.contains(id)) return AlreadyExists("anchor {}: expected an id of another node, it has an anchor here", id);
  TRIB_ASSIGN_OR_RETURN(const auto route, RouteOf(*program_, id));
  TRIB_RETURN_IF_ERROR(CheckDomain(id, domain, route));
  last_id_ = std::max(last_id_, id);
  return program_->SetRoute(id, {.domain = domain, .sock = id, .flags = TB_ROUTE_REMOTE, .epoch = route ? route->epoch : 0});
}

absl::StatusOr<Anchors::Anchor> Anchors::Add(uint32_t id, uint32_t domain) {
  TRIB_RETURN_IF_ERROR(CheckNumbers(id, domain));
  if (entries_.contains(id)) return AlreadyExists("anchor {}: it has one, of epoch {}", id, entries_[id].epoch);
  TRIB_ASSIGN_OR_RETURN(const auto route, RouteOf(*program_, id));
  TRIB_RETURN_IF_ERROR(CheckDomain(id, domain, route));
  return Install(id, domain, route ? route->epoch + 1 : 1, route ? &*route : nullptr);
}

absl::StatusOr<Anchors::Anchor> Anchors::Recycle(uint32_t id) {
  TRIB_ASSIGN_OR_RETURN(const auto route, RouteOf(*program_, id));
  if (!route) return NotFound("anchor {}: nobody has this id", id);
  return Install(id, route->domain, route->epoch + 1, &*route);
}

absl::StatusOr<Anchors::Anchor> Anchors::Install(uint32_t id, uint32_t domain, uint32_t epoch, const tb_route* before) {
  TRIB_ASSIGN_OR_RETURN(AnchorPair pair, make_pair_());
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u32 = id;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, pair.daemon_end.get(), &event) != 0) return ErrnoStatus(errno, fmt::format("anchor {}: epoll", id));
  // Identity, then route, then sockhash: a socket in the sockhash is complete, and one outside it does not run the program.
  TRIB_RETURN_IF_ERROR(program_->SetIdentity(pair.worker_end.get(), {.id = id, .domain = domain}));
  TRIB_RETURN_IF_ERROR(program_->SetRoute(id, {.domain = domain, .sock = id, .flags = 0, .epoch = epoch}));
  if (absl::Status inserted = program_->InsertSocket(id, pair.worker_end.get()); !inserted.ok()) {
    TRIB_LOG_IF_ERROR(before != nullptr ? program_->SetRoute(id, *before) : program_->DeleteRoute(id));
    return inserted;
  }
  last_id_ = std::max(last_id_, id);
  Entry entry;
  entry.domain = domain;
  entry.epoch = epoch;
  entry.daemon_end = std::move(pair.daemon_end);
  Entry& place = entries_[id];
  Close(place);  // the old pair's end, if there was one
  place = std::move(entry);
  return Anchor{id, domain, epoch, std::move(pair.worker_end)};
}

// Closing alone would leave it in the epoll set while a child that is just being spawned still has its copy.
void Anchors::Close(Entry& entry) {
  if (entry.daemon_end.valid()) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, entry.daemon_end.get(), nullptr);
  ResetAndClose(entry.daemon_end);
}

absl::Status Anchors::SetFlag(uint32_t id, uint32_t flag, bool on) {
  TRIB_ASSIGN_OR_RETURN(tb_route route, program_->GetRoute(id));
  route.flags = on ? route.flags | flag : route.flags & ~flag;
  return program_->SetRoute(id, route);
}

absl::Status Anchors::Pause(uint32_t id) { return SetFlag(id, TB_ROUTE_PAUSED, true); }
absl::Status Anchors::Resume(uint32_t id) { return SetFlag(id, TB_ROUTE_PAUSED, false); }

absl::StatusOr<Anchors::Entry*> Anchors::Find(uint32_t id, uint32_t epoch) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return NotFound("anchor {}: it has none", id);
  if (found->second.epoch != epoch) return FailedPrecondition("anchor {}: expected its epoch {}, got {}", id, found->second.epoch, epoch);
  return &found->second;
}

absl::Status Anchors::Remove(uint32_t id, uint32_t epoch) {
  TRIB_RETURN_IF_ERROR(Find(id, epoch).status());
  TRIB_ASSIGN_OR_RETURN(const tb_route route, program_->GetRoute(id));
  if ((route.flags & TB_ROUTE_PAUSED) == 0) return FailedPrecondition("anchor {}: expected it to be paused and drained before it is removed", id);
  TRIB_RETURN_IF_ERROR(IfPresent(program_->DeleteSocket(id)));
  TRIB_RETURN_IF_ERROR(IfPresent(program_->DeleteRoute(id)));
  Close(entries_[id]);
  entries_.erase(id);
  return absl::OkStatus();
}

absl::Status Anchors::Forget(uint32_t id, uint32_t epoch) {
  TRIB_RETURN_IF_ERROR(Find(id, epoch).status());
  TRIB_RETURN_IF_ERROR(IfPresent(program_->DeleteSocket(id)));  // the kernel has done so; a leaked fd elsewhere would keep it
  TRIB_RETURN_IF_ERROR(SetFlag(id, TB_ROUTE_PAUSED, false));
  Close(entries_[id]);
  entries_.erase(id);
  return absl::OkStatus();
}

absl::Status Anchors::Withdraw(uint32_t id) {
  if (entries_.contains(id)) return FailedPrecondition("anchor {}: expected no anchor, it has one: remove it first", id);
  return program_->DeleteRoute(id);
}

Anchors::Incoming Anchors::Read(absl::Time now) {
  Incoming incoming;
  std::array<epoll_event, 64> events;
  int count = 0;
  do {
    count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  } while (count < 0 && errno == EINTR);
  for (int i = 0; i < count; ++i) {
    const auto found = entries_.find(events[static_cast<size_t>(i)].data.u32);
    if (found != entries_.end()) ReadOne(found->first, found->second, now, incoming);
  }
  for (auto& [id, entry] : entries_) {
    if (entry.broken || now - entry.piece_since < kPieceGrace) continue;
    entry.broken = true;
    entry.piece_since = absl::InfiniteFuture();
    incoming.offenders.push_back({id, entry.epoch});
  }
  return incoming;
}

void Anchors::ReadOne(uint32_t id, Entry& entry, absl::Time now, Incoming& incoming) {
  std::array<std::byte, kReadBytes> buffer;
  ssize_t count = 0;
  do {
    count = ::recv(entry.daemon_end.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EAGAIN) return;
  if (count <= 0) {
    entry.closed = true;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, entry.daemon_end.get(), nullptr);
    incoming.closed.push_back({id, entry.epoch});
    return;
  }
  if (entry.broken) return;  // nothing of it is delivered any more
  TakeBytes(id, entry, {buffer.data(), static_cast<size_t>(count)}, incoming);
  if (entry.held == 0) {
    entry.piece_since = absl::InfiniteFuture();
  } else if (entry.piece_since == absl::InfiniteFuture()) {
    entry.piece_since = now;
  }
}

void Anchors::TakeBytes(uint32_t id, Entry& entry, std::span<const std::byte> bytes, Incoming& incoming) {
  while (!bytes.empty()) {
    const size_t part = std::min(bytes.size(), entry.piece.size() - entry.held);
    std::memcpy(entry.piece.data() + entry.held, bytes.data(), part);
    entry.held += part;
    bytes = bytes.subspan(part);
    if (entry.held < entry.piece.size()) return;
    entry.held = 0;
    DeadLetter letter;
    letter.source = id;
    std::memcpy(&letter.desc, entry.piece.data(), sizeof(letter.desc));
    if (letter.desc.src != id) {
      ++forged_letters_;
    } else {
      incoming.letters.push_back(letter);
    }
  }
}

absl::Duration Anchors::NextCheck(absl::Time now) const {
  absl::Duration next = absl::InfiniteDuration();
  for (const auto& [id, entry] : entries_) {
    if (!entry.broken && entry.piece_since != absl::InfiniteFuture()) next = std::min(next, entry.piece_since + kPieceGrace - now);
  }
  return std::max(next, absl::ZeroDuration());
}

}  // namespace tributary::aggregator
