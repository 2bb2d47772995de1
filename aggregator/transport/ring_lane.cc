// The `ring` transport: descriptors in a shared lane, wake-up by futex or eventfd. Bytes and protocol: LANES.md; dataplane.md §4.
#include <absl/time/clock.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>

#include "aggregator/transport/transport.h"
#include "common/crash_points.h"

namespace tributary::aggregator {
namespace {

// No wake-up is ever lost (see LANES.md); the sleeper still looks once a second, so that a defect is counted, not fatal.
constexpr absl::Duration kSafetyTimeout = absl::Seconds(1);
// Between a producer's store of `head` and its doorbell lie a few instructions; longer than this means the doorbell was forgotten.
constexpr absl::Duration kDoorbellGrace = absl::Milliseconds(200);

std::atomic_ref<uint32_t> Atomic(uint32_t& word) { return std::atomic_ref<uint32_t>(word); }

// Shared (not private) futex: the two ends are two processes.
void FutexWake(uint32_t& word) { ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0); }

timespec Limit(absl::Duration duration) { return absl::ToTimespec(std::max(duration, absl::ZeroDuration())); }

// Sleeps while word == expected, at most `timeout`.
void FutexWait(uint32_t& word, uint32_t expected, absl::Duration timeout) {
  const timespec limit = Limit(timeout);
  ::syscall(SYS_futex, &word, FUTEX_WAIT, expected, &limit, nullptr, 0);
}

bool PollIn(int fd, absl::Duration timeout) {
  pollfd entry{fd, POLLIN, 0};
  const timespec limit = Limit(timeout);
  return ::ppoll(&entry, 1, &limit, nullptr) > 0;
}

// The two ends' common view: geometry is checked once and kept privately; slots are reached through it only.
struct Lane {
  tb_lane_header* header = nullptr;
  tb_desc* slots = nullptr;
  uint32_t capacity = 0;

  tb_desc& Slot(uint32_t cursor) const { return slots[cursor & (capacity - 1)]; }
};

absl::StatusOr<Lane> AttachLane(std::span<std::byte> region) {
  if (region.size() < sizeof(tb_lane_header)) {
    return InvalidArgument("lane: expected at least {} bytes, got {}", sizeof(tb_lane_header), region.size());
  }
  auto* header = reinterpret_cast<tb_lane_header*>(region.data());
  const uint32_t magic = Atomic(header->magic).load(std::memory_order_acquire);
  const uint32_t version = header->abi_version;
  const uint32_t capacity = header->capacity;
  if (magic != TB_LANE_MAGIC || version != TB_ABI_VERSION) {
    return DataLoss("lane: expected magic {:#x} version {}, got {:#x} version {}", TB_LANE_MAGIC, TB_ABI_VERSION, magic, version);
  }
  if (capacity == 0 || capacity > TB_MAX_LANE_CAPACITY || !std::has_single_bit(capacity) ||
      region.size() < LaneBytes(capacity)) {
    return DataLoss("lane: expected a power of two up to {} that fits {} bytes, got capacity {}", TB_MAX_LANE_CAPACITY,
                    region.size(), capacity);
  }
  return Lane{header, reinterpret_cast<tb_desc*>(region.data() + sizeof(tb_lane_header)), capacity};
}

class RingProducer final : public LaneProducer {
 public:
  RingProducer(Lane lane, RingDoorbell doorbell, uint32_t head, uint32_t done)
      : lane_(lane), doorbell_(doorbell), head_(head), done_(done) {}

  absl::Status Push(const tb_desc& desc) override {
    TRIB_RETURN_IF_ERROR(ReadDone());
    if (head_ - done_ >= lane_.capacity) return Unavailable("lane: no credit, all {} slots are in use", lane_.capacity);
    std::memcpy(&lane_.Slot(head_), &desc, sizeof(desc));
    ++head_;
    // Both accesses are seq_cst, as are the consumer's store of `asleep` and load of `head` in Arm(): in the single order of
    // these four, either the consumer sees the new head or this exchange sees it asleep. No fence needed (and TSan knows none).
    Atomic(lane_.header->head).store(head_, std::memory_order_seq_cst);
    TRIB_CRASH_POINT(lane_after_push);
    if (Atomic(lane_.header->asleep).load(std::memory_order_seq_cst) != 0 &&
        Atomic(lane_.header->asleep).exchange(0, std::memory_order_seq_cst) == 1) {
      if (doorbell_.ring_fd >= 0) {
        RingEventFd(doorbell_.ring_fd);
      } else {
        FutexWake(lane_.header->asleep);
      }
    }
    return absl::OkStatus();
  }

  bool ArmProgress() override {
    // Mirror of Push: want_credit store, then done load, against the consumer's done store, then want_credit exchange.
    Atomic(lane_.header->want_credit).store(1, std::memory_order_seq_cst);
    return closed_ || Atomic(lane_.header->done).load(std::memory_order_seq_cst) != done_;
  }

  bool WaitForProgress(absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    while (true) {
      if (ArmProgress()) break;
      const absl::Duration left = std::min(deadline - absl::Now(), kSafetyTimeout);
      if (left <= absl::ZeroDuration()) break;
      if (doorbell_.wait_fd >= 0) {
        if (PollIn(doorbell_.wait_fd, left)) DrainEventFd(doorbell_.wait_fd);
      } else {
        FutexWait(lane_.header->want_credit, 1, left);
      }
    }
    Atomic(lane_.header->want_credit).store(0, std::memory_order_relaxed);
    return closed_ || Atomic(lane_.header->done).load(std::memory_order_acquire) != done_;
  }

  absl::StatusOr<uint32_t> Done() override {
    TRIB_RETURN_IF_ERROR(ReadDone());
    return done_;
  }
  uint32_t pushed() const override { return head_; }
  uint32_t capacity() const override { return lane_.capacity; }

 private:
  // Takes over the consumer's cursor: it only rises, and never past what was pushed.
  absl::Status ReadDone() {
    if (!closed_) {
      // Counterpart: Release. Everything the consumer did with the slots, and its refusals, came before.
      const uint32_t done = Atomic(lane_.header->done).load(std::memory_order_acquire);
      if (done - done_ <= head_ - done_) {
        done_ = done;
        return absl::OkStatus();
      }
      closed_ = true;
      lie_ = done;
    }
    return DataLoss("lane: expected the consumer's cursor between {} and {}, got {}; lane closed", done_, head_, lie_);
  }

  const Lane lane_;
  const RingDoorbell doorbell_;
  uint32_t head_;
  uint32_t done_;
  bool closed_ = false;
  uint32_t lie_ = 0;
};

class RingConsumer final : public LaneConsumer {
 public:
  RingConsumer(Lane lane, RingDoorbell doorbell, uint32_t done) : lane_(lane), doorbell_(doorbell), tail_(done), done_(done) {}

  absl::StatusOr<size_t> Poll(std::span<tb_desc> out) override {
    // Counterpart: the producer's store in Push; the slots up to head are written.
    const uint32_t head = Atomic(lane_.header->head).load(std::memory_order_acquire);
    if (closed_ || head - done_ > lane_.capacity || head - done_ < tail_ - done_) {
      closed_ = true;
      return DataLoss("lane: expected the producer's cursor between {} and {}, got {}; lane closed", tail_,
                      done_ + lane_.capacity, head);
    }
    const size_t count = std::min<size_t>(head - tail_, out.size());
    for (size_t i = 0; i < count; ++i) std::memcpy(&out[i], &lane_.Slot(tail_ + static_cast<uint32_t>(i)), sizeof(tb_desc));
    tail_ += static_cast<uint32_t>(count);
    Atomic(lane_.header->tail).store(tail_, std::memory_order_relaxed);  // for people; nobody decides by it
    return count;
  }

  bool Arm() override {
    Atomic(lane_.header->asleep).store(1, std::memory_order_seq_cst);
    return HasWork(std::memory_order_seq_cst);
  }

  void Disarm(bool timed_out) override {
    if (timed_out && HasWork(std::memory_order_acquire)) {
      // Work came without a doorbell so far. The producer may be between its two steps: give it that time before calling it late.
      const absl::Time deadline = absl::Now() + kDoorbellGrace;
      while (Atomic(lane_.header->asleep).load(std::memory_order_acquire) == 1) {
        if (absl::Now() >= deadline) {
          ++late_wakeups_;
          break;
        }
        absl::SleepFor(absl::Microseconds(100));
      }
    }
    Atomic(lane_.header->asleep).store(0, std::memory_order_relaxed);
  }

  bool Wait(absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    while (!Arm()) {
      const absl::Duration left = std::min(deadline - absl::Now(), kSafetyTimeout);
      if (left <= absl::ZeroDuration()) break;
      if (doorbell_.wait_fd >= 0) {
        if (PollIn(doorbell_.wait_fd, left)) DrainEventFd(doorbell_.wait_fd);
      } else {
        FutexWait(lane_.header->asleep, 1, left);
      }
      // Asleep still 1: nobody rang, the sleep ended by itself.
      if (Atomic(lane_.header->asleep).load(std::memory_order_acquire) == 1) Disarm(/*timed_out=*/true);
      if (HasWork(std::memory_order_acquire)) return true;
    }
    Disarm(/*timed_out=*/false);
    return HasWork(std::memory_order_acquire);
  }

  void Release(uint32_t done) override {
    // Our own caller's mistake would let the producer overwrite the replay log: never past what was taken, never back.
    if (done - done_ > tail_ - done_) return;
    done_ = done;
    Atomic(lane_.header->done).store(done, std::memory_order_seq_cst);
    if (Atomic(lane_.header->want_credit).load(std::memory_order_seq_cst) != 0 &&
        Atomic(lane_.header->want_credit).exchange(0, std::memory_order_seq_cst) == 1) {
      if (doorbell_.ring_fd >= 0) {
        RingEventFd(doorbell_.ring_fd);
      } else {
        FutexWake(lane_.header->want_credit);
      }
    }
  }

  uint32_t tail() const override { return tail_; }
  uint64_t late_wakeups() const override { return late_wakeups_; }

 private:
  // A lying head counts as work: Poll then reports it.
  bool HasWork(std::memory_order order) const { return closed_ || Atomic(lane_.header->head).load(order) != tail_; }

  const Lane lane_;
  const RingDoorbell doorbell_;
  uint32_t tail_;
  uint32_t done_;
  bool closed_ = false;
  uint64_t late_wakeups_ = 0;
};

// {head, done} of a lane that may have history.
absl::StatusOr<std::pair<uint32_t, uint32_t>> ReadCursors(const Lane& lane) {
  const uint32_t done = Atomic(lane.header->done).load(std::memory_order_acquire);
  const uint32_t head = Atomic(lane.header->head).load(std::memory_order_acquire);
  if (head - done > lane.capacity) {
    return DataLoss("lane: expected at most {} descriptors under way, got head {} and done {}", lane.capacity, head, done);
  }
  return std::make_pair(head, done);
}

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

size_t LaneBytes(uint32_t capacity) { return sizeof(tb_lane_header) + size_t{capacity} * sizeof(tb_desc); }

absl::Status FormatLane(std::span<std::byte> region, uint32_t capacity) {
  if (capacity == 0 || capacity > TB_MAX_LANE_CAPACITY || !std::has_single_bit(capacity)) {
    return InvalidArgument("lane: expected a capacity that is a power of two up to {}, got {}", TB_MAX_LANE_CAPACITY, capacity);
  }
  if (region.size() < LaneBytes(capacity)) {
    return InvalidArgument("lane: expected at least {} bytes, got {}", LaneBytes(capacity), region.size());
  }
  std::memset(region.data(), 0, LaneBytes(capacity));
  auto* header = reinterpret_cast<tb_lane_header*>(region.data());
  header->abi_version = TB_ABI_VERSION;
  header->capacity = capacity;
  Atomic(header->magic).store(TB_LANE_MAGIC, std::memory_order_release);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LaneProducer>> AttachRingProducer(std::span<std::byte> region, RingDoorbell doorbell) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const auto cursors, ReadCursors(lane));
  return std::unique_ptr<LaneProducer>(new RingProducer(lane, doorbell, cursors.first, cursors.second));
}

absl::StatusOr<std::unique_ptr<LaneConsumer>> AttachRingConsumer(std::span<std::byte> region, RingDoorbell doorbell) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const auto cursors, ReadCursors(lane));
  return std::unique_ptr<LaneConsumer>(new RingConsumer(lane, doorbell, cursors.second));
}

}  // namespace tributary::aggregator
