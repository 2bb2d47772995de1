// The `ring` transport: descriptors in a shared lane, wake-up by futex or eventfd. Bytes and protocol: LANES.md; dataplane.md §4.
#include <absl/time/clock.h>
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "aggregator/transport/lane.h"

namespace tributary::aggregator {
namespace {

// Who exchanged the flag to 0 rings in the next instruction; nothing of a ring can be lost on its way.
bool FlagIsClear(uint32_t& word) { return Atomic(word).load(std::memory_order_acquire) == 0; }
bool FlagClearsWithin(uint32_t& word, absl::Duration grace) {
  const absl::Time deadline = absl::Now() + grace;
  while (!FlagIsClear(word)) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Microseconds(100));
  }
  return true;
}

class FutexBell final : public Bell {
 public:
  explicit FutexBell(int peer_pidfd) : peer_pidfd_(peer_pidfd) {}

  // Shared (not private) futex: the two ends are two processes.
  void Ring(uint32_t& word) override {
    ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    CountSent();
  }
  void Sleep(uint32_t& word, absl::Duration timeout) override {
    const timespec limit = absl::ToTimespec(std::max(timeout, absl::ZeroDuration()));
    ::syscall(SYS_futex, &word, FUTEX_WAIT, 1, &limit, nullptr, 0);
  }
  bool Rung(uint32_t& word) override { return FlagIsClear(word); }
  bool RungWithin(uint32_t& word, absl::Duration grace) override { return FlagClearsWithin(word, grace); }
  bool PeerEnded() override { return peer_pidfd_ >= 0 && PollIn(peer_pidfd_, absl::ZeroDuration()); }

 private:
  const int peer_pidfd_;
};

class EventFdBell final : public Bell {
 public:
  EventFdBell(RingDoorbell fds, int peer_pidfd) : fds_(fds), peer_pidfd_(peer_pidfd) {}

  void Ring(uint32_t&) override {
    RingEventFd(fds_.ring_fd);
    CountSent();
  }
  void Sleep(uint32_t&, absl::Duration timeout) override {
    if (PollIn(fds_.wait_fd, timeout, peer_pidfd_)) DrainEventFd(fds_.wait_fd);
  }
  bool Rung(uint32_t& word) override { return FlagIsClear(word); }
  bool RungWithin(uint32_t& word, absl::Duration grace) override { return FlagClearsWithin(word, grace); }
  bool PeerEnded() override { return peer_pidfd_ >= 0 && PollIn(peer_pidfd_, absl::ZeroDuration()); }

 private:
  const RingDoorbell fds_;
  const int peer_pidfd_;
};

std::unique_ptr<Bell> MakeBell(RingDoorbell doorbell, int peer_pidfd) {
  if (doorbell.wait_fd >= 0) return std::make_unique<EventFdBell>(doorbell, peer_pidfd);
  return std::make_unique<FutexBell>(peer_pidfd);
}

absl::StatusOr<std::unique_ptr<LaneProducer>> Produce(std::span<std::byte> region, RingDoorbell doorbell, uint32_t self, const LaneOptions& options) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const LaneCursors cursors, ReadCursors(lane));
  auto producer = std::make_unique<LaneProducerEnd>(lane, cursors, self, options.peer, MakeBell(doorbell, options.peer_pidfd));
  producer->RingForHistory();
  return producer;
}

absl::StatusOr<std::unique_ptr<LaneConsumer>> Consume(std::span<std::byte> region, RingDoorbell doorbell, const LaneOptions& options) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const LaneCursors cursors, ReadCursors(lane));
  return std::make_unique<LaneConsumerEnd>(lane, cursors, options.peer, MakeBell(doorbell, options.peer_pidfd));
}

class RingEndpoint final : public TransportEndpoint {
 public:
  RingEndpoint(uint32_t self, int wait_fd) : self_(self), wait_fd_(wait_fd) {}

  TransportKind kind() const override { return TransportKind::kRing; }
  absl::StatusOr<std::unique_ptr<LaneProducer>> OpenProducer(std::span<std::byte> region, const LaneOptions& options) override {
    TRIB_RETURN_IF_ERROR(CheckFds(options));
    return Produce(region, {.wait_fd = wait_fd_, .ring_fd = options.ring_fd}, self_, options);
  }
  absl::StatusOr<std::unique_ptr<LaneConsumer>> OpenConsumer(std::span<std::byte> region, const LaneOptions& options) override {
    TRIB_RETURN_IF_ERROR(CheckFds(options));
    return Consume(region, {.wait_fd = wait_fd_, .ring_fd = options.ring_fd}, options);
  }
  int wait_fd() const override { return wait_fd_; }
  void Drain() override {
    if (wait_fd_ >= 0) DrainEventFd(wait_fd_);
  }

 private:
  absl::Status CheckFds(const LaneOptions& options) const {
    if ((wait_fd_ >= 0) == (options.ring_fd >= 0)) return absl::OkStatus();
    return InvalidArgument("ring: expected eventfds at both ends of a lane or at none, got {} here and {} there", wait_fd_, options.ring_fd);
  }
  const uint32_t self_;
  const int wait_fd_;
};

}  // namespace

void RingEventFd(int fd) {
  const uint64_t one = 1;
  // EAGAIN means the counter is full: the other end has a wake-up waiting anyway.
  while (::write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

void DrainEventFd(int fd) {
  uint64_t count = 0;
  while (::read(fd, &count, sizeof(count)) < 0 && errno == EINTR) {
  }
}

absl::StatusOr<std::unique_ptr<LaneProducer>> AttachRingProducer(std::span<std::byte> region, RingDoorbell doorbell) {
  return Produce(region, doorbell, 0, {});
}

absl::StatusOr<std::unique_ptr<LaneConsumer>> AttachRingConsumer(std::span<std::byte> region, RingDoorbell doorbell) {
  return Consume(region, doorbell, {});
}

std::unique_ptr<TransportEndpoint> MakeRingEndpoint(uint32_t self, int wait_fd) { return std::make_unique<RingEndpoint>(self, wait_fd); }

}  // namespace tributary::aggregator
