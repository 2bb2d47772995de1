#include "aggregator/worker/worker_runtime.h"

#include <absl/time/time.h>
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "aggregator/transport/transport.h"
#include "common/clock.h"
#include "common/log.h"

namespace tributary::aggregator {
WorkerRuntime::WorkerRuntime(UniqueFd channel) : channel_(std::move(channel)) {}
WorkerRuntime::~WorkerRuntime() = default;

Seat& WorkerRuntime::SeatOf(uint32_t number) {
  std::unique_ptr<Seat>& seat = seats_[number];
  if (!seat) seat = std::make_unique<Seat>(number, &channel_);
  return *seat;
}

void WorkerRuntime::Fail(uint32_t number, const absl::Status& why) {
  seats_.erase(number);
  WorkerMessage message;
  message.kind = WorkerMessageKind::kFailed;
  message.job = number;
  message.code = static_cast<uint32_t>(why.code());
  const std::string text = MessageOf(why);
  std::memcpy(message.reason, text.data(), std::min(sizeof(message.reason) - 1, text.size()));
  TRIB_LOG(warn, "seat {} dropped: {}", number, text);
  TRIB_LOG_IF_ERROR(channel_.Send(message));
}

absl::StatusOr<WorkerRuntime::Next> WorkerRuntime::Handle(WorkerChannel::Received received) {
  const WorkerMessage& message = received.message;
  absl::Status status;
  switch (message.kind) {
    case WorkerMessageKind::kHello: {
      doorbell_ = std::move(received.fds[0]);
      progress_ = std::move(received.fds[1]);
      WorkerMessage ready;
      ready.kind = WorkerMessageKind::kReady;
      const absl::Status sent = channel_.Send(ready);
      if (sent.code() == absl::StatusCode::kUnavailable) return Next::kStop;  // the daemon is gone already
      TRIB_RETURN_IF_ERROR(sent);
      return Next::kGoOn;
    }
    case WorkerMessageKind::kOpenJob:
      if (!doorbell_.valid()) return InvalidArgument("worker channel: a seat before the doorbells");
      status = SeatOf(message.job).Open(message, std::move(received.fds[0]), std::move(received.fds[1]), doorbell_.get(), progress_.get());
      break;
    case WorkerMessageKind::kAnchor:
      status = SeatOf(message.job).SetAnchor(message, std::move(received.fds[0]));
      break;
    case WorkerMessageKind::kSegment:
      status = SeatOf(message.job).AddSegment(message, std::move(received.fds[0]));
      break;
    case WorkerMessageKind::kChild:
      if (!doorbell_.valid()) return InvalidArgument("worker channel: a child before the doorbells");
      status = SeatOf(message.job).AddChild(message, std::move(received.fds[0]), std::move(received.fds[1]), doorbell_.get(), progress_.get());
      break;
    case WorkerMessageKind::kRole:
    case WorkerMessageKind::kParent: {
      // Not for a seat that has failed: the daemon may not have heard of it yet.
      const auto seat = seats_.find(message.job);
      if (seat == seats_.end()) return Next::kGoOn;
      status = message.kind == WorkerMessageKind::kRole
                   ? seat->second->SetRole(message)
                   : seat->second->SetParent(message, std::move(received.fds[0]), std::move(received.fds[1]), doorbell_.get());
      break;
    }
    case WorkerMessageKind::kReplay:
      if (const auto seat = seats_.find(message.job); seat != seats_.end()) seat->second->Replay();
      return Next::kGoOn;
    case WorkerMessageKind::kPing: {
      WorkerMessage pong;
      pong.kind = WorkerMessageKind::kPong;
      TRIB_LOG_IF_ERROR(channel_.Send(pong));  // a daemon that is gone shows at the next Receive
      return Next::kGoOn;
    }
    case WorkerMessageKind::kCloseJob:
      seats_.erase(message.job);
      return Next::kGoOn;
    case WorkerMessageKind::kStop:
      return Next::kStop;
    default:
      return InvalidArgument("worker channel: kind {} is not for a worker", static_cast<uint32_t>(message.kind));
  }
  if (!status.ok()) Fail(message.job, status);
  return Next::kGoOn;
}

absl::StatusOr<WorkerRuntime::Next> WorkerRuntime::DrainChannel() {
  while (true) {
    absl::StatusOr<WorkerChannel::Received> received = channel_.Receive(absl::ZeroDuration());
    if (received.status().code() == absl::StatusCode::kDeadlineExceeded) return Next::kGoOn;
    if (received.status().code() == absl::StatusCode::kUnavailable) return Next::kStop;  // the daemon is gone
    if (!received.ok()) return received.status();
    TRIB_ASSIGN_OR_RETURN(const Next next, Handle(*std::move(received)));
    if (next == Next::kStop) return next;
  }
}

bool WorkerRuntime::TakeAll() {
  bool busy = false;
  std::vector<std::pair<uint32_t, absl::Status>> failed;
  for (auto& [number, seat] : seats_) {
    if (!seat->opened()) continue;
    const absl::StatusOr<bool> taken = seat->Take();
    if (!taken.ok()) failed.emplace_back(number, taken.status());
    busy = busy || !taken.ok() || *taken;
  }
  for (const auto& [number, why] : failed) Fail(number, why);
  return busy;
}

bool WorkerRuntime::ProcessAll() {
  bool busy = false;
  std::vector<std::pair<uint32_t, absl::Status>> failed;
  for (auto& [number, seat] : seats_) {
    if (!seat->opened()) continue;
    const absl::StatusOr<bool> worked = seat->Process();
    if (!worked.ok()) failed.emplace_back(number, worked.status());
    busy = busy || !worked.ok() || *worked;
  }
  for (const auto& [number, why] : failed) Fail(number, why);
  return busy;
}

void WorkerRuntime::Sleep() {
  bool work = false;
  bool open = false;
  absl::Time look_at = absl::InfiniteFuture();
  std::vector<pollfd> fds = {{channel_.fd(), POLLIN, 0}, {doorbell_.get(), POLLIN, 0}};
  std::vector<Seat*> anchored;  // fds[2 + i] is the anchor of anchored[i]
  for (auto& [number, seat] : seats_) {
    if (!seat->opened()) continue;
    open = true;
    if (const int fd = seat->wait_fd(); fd >= 0) {
      fds.push_back({fd, POLLIN, 0});
      anchored.push_back(seat.get());
    }
    work = seat->Arm() || work;
    look_at = std::min(look_at, seat->look_at());
  }
  bool timed_out = false;
  if (!work) {
    const absl::Duration until = look_at == absl::InfiniteFuture() ? absl::InfiniteDuration() : look_at - BootClock().Now();
    // The protocol loses no wake-up (transport/LANES.md); a sleeper looks anyway, and counts what it finds.
    const timespec limit = absl::ToTimespec(std::clamp(until, absl::ZeroDuration(), SafetyTimeout(idle_)));
    // Parked without a seat: nothing can be missed, so no timeout either.
    timed_out = ::ppoll(fds.data(), fds.size(), open ? &limit : nullptr, nullptr) == 0;
    idle_ = timed_out ? idle_ + 1 : 0;
    if ((fds[1].revents & POLLIN) != 0) DrainEventFd(doorbell_.get());
    for (size_t i = 0; i < anchored.size(); ++i) {
      if (fds[2 + i].revents != 0) anchored[i]->Drain();
    }
  }
  for (auto& [number, seat] : seats_) {
    if (seat->opened()) seat->Disarm(timed_out);
  }
}

absl::Status WorkerRuntime::Run() {
  while (true) {
    const bool taken = TakeAll();
    TRIB_ASSIGN_OR_RETURN(const Next next, DrainChannel());
    if (next == Next::kStop) return absl::OkStatus();
    const bool worked = ProcessAll();
    if (taken || worked) {
      idle_ = 0;
    } else {
      Sleep();
    }
  }
}

}  // namespace tributary::aggregator
