#include "aggregator/coordinator/worker_fleet.h"

#include <absl/time/clock.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "aggregator/transport/transport.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(2);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(10);
constexpr absl::Duration kMaxBackoff = absl::Seconds(2);
// A process that ends sooner than this without having done anything is not restarted at full speed.
constexpr absl::Duration kQuickDeath = absl::Seconds(1);

}  // namespace

absl::StatusOr<uint32_t> WorkerFleet::Add() {
  Worker worker;
  worker.doorbell.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!worker.doorbell.valid()) return ErrnoStatus(errno, "worker pool: eventfd");
  const auto free = std::find_if(workers_.begin(), workers_.end(), [](const Worker& w) { return w.state == State::kFree; });
  const auto index = static_cast<uint32_t>(free - workers_.begin());
  if (free == workers_.end()) {
    workers_.push_back(std::move(worker));
  } else {
    *free = std::move(worker);
  }
  RingEventFd(progress_fd_);
  return index;
}

void WorkerFleet::TellStop(uint32_t index) {
  WorkerMessage stop;
  stop.kind = WorkerMessageKind::kStop;
  Tell(index, stop);
  workers_[index].retire_by = absl::Now() + kStopGrace;
  RingEventFd(progress_fd_);
}

void WorkerFleet::Retire(uint32_t index) {
  TellStop(index);
  workers_[index].state = State::kRetiring;
}

void WorkerFleet::Rest(uint32_t index) {
  TellStop(index);
  workers_[index].state = State::kResting;
  workers_[index].roused = false;
}

void WorkerFleet::Rouse(uint32_t index) {
  workers_[index].roused = true;
  RingEventFd(progress_fd_);
}

void WorkerFleet::Kill(uint32_t index, const absl::Status& why) {
  Worker& worker = workers_[index];
  TRIB_LOG(warn, "worker {} (pid {}) is replaced: {}", index, pid(index), MessageOf(why));
  if (worker.process) worker.process->Signal(SIGKILL);
  worker.channel_broken = true;  // closed in Turn, whose thread may be polling it; the end comes by pidfd
}

void WorkerFleet::Tell(uint32_t index, const WorkerMessage& message, std::vector<int> fds) {
  Worker& worker = workers_[index];
  if (!worker.channel || worker.channel_broken) return;
  const absl::Status status = worker.channel->Send(message, std::move(fds));
  if (!status.ok() && status.code() != absl::StatusCode::kUnavailable) Kill(index, status);
}

absl::Status WorkerFleet::Spawn(uint32_t index) {
  Worker& worker = workers_[index];
  TRIB_ASSIGN_OR_RETURN(auto pair, WorkerChannel::CreatePair());
  SpawnOptions spawn;
  spawn.program = program_;
  spawn.args = {"--channel-fd", "3", "--parent", fmt::format("{}", ::getpid())};
  spawn.fds = {{pair.second.get(), 3}};
  TRIB_ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Spawn(spawn));
  worker.process = std::make_unique<ChildProcess>(std::move(child));
  worker.channel = std::make_unique<WorkerChannel>(std::move(pair.first));
  worker.channel_broken = false;
  worker.ready = false;
  worker.started_at = absl::Now();
  WorkerMessage hello;
  hello.kind = WorkerMessageKind::kHello;
  Tell(index, hello, {worker.doorbell.get(), progress_fd_});
  owner_->Greet(index);
  return absl::OkStatus();
}

void WorkerFleet::OnDeath(uint32_t index, absl::Time now) {
  Worker& worker = workers_[index];
  worker.process.reset();
  worker.channel.reset();
  if (stopping_) return;
  ++worker.restarts;
  const Owner::Work work = owner_->WorkOf(index);
  const bool progressed = work.stamp != worker.progress_stamp;
  worker.progress_stamp = work.stamp;
  worker.quick_deaths = progressed || now - worker.started_at > kQuickDeath ? 0 : worker.quick_deaths + 1;
  worker.stuck_deaths = progressed || !work.waiting ? 0 : worker.stuck_deaths + 1;
  if (worker.stuck_deaths >= kDeathsWithoutProgress) {
    worker.stuck_deaths = 0;
    owner_->OnStuck(index, fmt::format("worker {} died {} times at the same place", index, kDeathsWithoutProgress));
  }
  const absl::Duration backoff =
      worker.quick_deaths == 0 ? absl::ZeroDuration()
                               : std::min(kMaxBackoff, kFirstBackoff * (1 << std::min(worker.quick_deaths - 1, 10u)));
  worker.respawn_at = now + backoff;
  TRIB_LOG(warn, "worker {} has died; replaced in {}", index, absl::FormatDuration(backoff));
}

void WorkerFleet::DrainChannel(uint32_t index) {
  Worker& worker = workers_[index];
  if (worker.channel_broken) worker.channel.reset();
  while (worker.channel && !worker.channel_broken) {
    const absl::StatusOr<WorkerChannel::Received> received = worker.channel->Receive(absl::ZeroDuration());
    if (received.ok()) {
      if (received->message.kind == WorkerMessageKind::kReady) {
        worker.ready = true;
      } else if (absl::Status status = owner_->Hear(index, received->message); !status.ok()) {
        Kill(index, status);
      }
    } else if (received.status().code() == absl::StatusCode::kDeadlineExceeded) {
      return;
    } else if (received.status().code() == absl::StatusCode::kUnavailable) {
      worker.channel.reset();  // dead or dying: the pidfd says so too
    } else {
      Kill(index, received.status());
    }
  }
}

absl::Duration WorkerFleet::TurnActive(uint32_t index, absl::Time now) {
  Worker& worker = workers_[index];
  const bool dead = worker.process && !worker.process->Running();
  DrainChannel(index);  // in this order: the last words of a dead worker count
  if (dead) OnDeath(index, now);
  if (worker.process != nullptr || stopping_ || worker.state != State::kActive) return absl::InfiniteDuration();
  if (worker.respawn_at <= now) {
    if (absl::Status status = Spawn(index); !status.ok()) {
      TRIB_LOG(error, "worker {} cannot be started: {}", index, MessageOf(status));
      if (!forgiving_) start_status_ = status;
      worker.respawn_at = now + kMaxBackoff;
    }
  }
  return worker.process ? absl::InfiniteDuration() : worker.respawn_at - now;
}

bool WorkerFleet::HasStopped(Worker& worker, absl::Time now, absl::Duration* sleep) {
  *sleep = absl::InfiniteDuration();
  worker.channel.reset();  // nothing it says matters any more; a worker without a daemon stops
  if (!worker.process || !worker.process->Running()) return true;
  if (now < worker.retire_by) {
    *sleep = worker.retire_by - now;
  } else {
    worker.process->Signal(SIGKILL);
  }
  return false;
}

absl::Duration WorkerFleet::TurnResting(uint32_t index, absl::Time now) {
  Worker& worker = workers_[index];
  absl::Duration sleep;
  if (!HasStopped(worker, now, &sleep)) return sleep;
  worker.process.reset();
  if (!worker.roused || stopping_) return absl::InfiniteDuration();
  worker.roused = false;
  worker.state = State::kActive;
  worker.respawn_at = absl::InfinitePast();
  worker.quick_deaths = 0;
  return TurnActive(index, now);
}

absl::Duration WorkerFleet::TurnRetiring(uint32_t index, absl::Time now) {
  Worker& worker = workers_[index];
  absl::Duration sleep;
  if (!HasStopped(worker, now, &sleep)) return sleep;
  worker = {};
  worker.state = State::kFree;
  return absl::InfiniteDuration();
}

absl::Duration WorkerFleet::Turn(absl::Time now) {
  absl::Duration sleep = absl::InfiniteDuration();
  for (uint32_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].state == State::kActive) sleep = std::min(sleep, TurnActive(i, now));
    if (workers_[i].state == State::kResting) sleep = std::min(sleep, TurnResting(i, now));
    if (workers_[i].state == State::kRetiring) sleep = std::min(sleep, TurnRetiring(i, now));
  }
  return sleep;
}

void WorkerFleet::AddPollFds(std::vector<pollfd>* fds) const {
  for (const Worker& worker : workers_) {
    if (worker.channel) fds->push_back({worker.channel->fd(), POLLIN, 0});
    if (worker.process) fds->push_back({worker.process->pidfd(), POLLIN, 0});
  }
}

std::vector<std::unique_ptr<ChildProcess>> WorkerFleet::Stop() {
  stopping_ = true;
  std::vector<std::unique_ptr<ChildProcess>> children;
  WorkerMessage stop;
  stop.kind = WorkerMessageKind::kStop;
  for (uint32_t i = 0; i < workers_.size(); ++i) {
    Tell(i, stop);
    if (workers_[i].process) children.push_back(std::move(workers_[i].process));
    workers_[i].channel.reset();
  }
  return children;
}

void WorkerFleet::WaitForEnd(std::vector<std::unique_ptr<ChildProcess>> children) {
  const absl::Time deadline = absl::Now() + kStopGrace;
  for (auto& child : children) {
    // A worker that does not stop in time is killed by ~ChildProcess.
    if (!child->Wait(std::max(deadline - absl::Now(), absl::ZeroDuration())).ok()) {
      TRIB_LOG(warn, "worker with pid {} has not stopped; killed", child->pid());
    }
  }
}

bool WorkerFleet::all_ready() const {
  return std::all_of(workers_.begin(), workers_.end(), [](const Worker& worker) { return worker.ready || worker.state != State::kActive; });
}

int WorkerFleet::pid(uint32_t worker) const { return workers_[worker].process ? workers_[worker].process->pid() : 0; }

}  // namespace tributary::aggregator
