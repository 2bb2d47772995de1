// The two ends of a lane, whatever wakes them: cursors, credits, trust. Inside this folder only; others see transport.h.
// Bytes and protocol: LANES.md; dataplane.md §4. A Bell is what differs between transports that keep descriptors in the lane.
//
// Borrows: the region, and the Bell's fds. Thread-compatible: one thread per end. Errors: DATA_LOSS when the other end lies.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>

#include "aggregator/transport/transport.h"

namespace tributary::aggregator {

// No wake-up is ever lost (LANES.md); a sleeper still looks once a second (a long idle consumer less often: SafetyTimeout), so that a
// defect is counted, not fatal.
inline constexpr absl::Duration kSafetyTimeout = absl::Seconds(1);
// Between a producer's store of `head` and its doorbell lie a few instructions; longer than this means the doorbell was forgotten.
inline constexpr absl::Duration kDoorbellGrace = absl::Milliseconds(200);

inline std::atomic_ref<uint32_t> Atomic(uint32_t& word) { return std::atomic_ref<uint32_t>(word); }
// A counter in shared memory that this process alone writes.
inline void CountUp(uint64_t& counter) {
  const std::atomic_ref<uint64_t> shared(counter);
  shared.store(shared.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}
// Sleeps until `fd` (or, where it is not -1, `other_fd`) is readable; true if `fd` is.
bool PollIn(int fd, absl::Duration timeout, int other_fd = -1);

// Checked once, kept privately; slots are reached through it only.
struct Lane {
  tb_lane_header* header = nullptr;
  tb_desc* slots = nullptr;
  uint32_t capacity = 0;

  tb_desc& Slot(uint32_t cursor) const { return slots[cursor & (capacity - 1)]; }
};
absl::StatusOr<Lane> AttachLane(std::span<std::byte> region);
struct LaneCursors {
  uint32_t head = 0, done = 0;
};
// Of a lane that may have history.
absl::StatusOr<LaneCursors> ReadCursors(const Lane& lane);

// How one end of one lane is woken and wakes the other. `word` is the flag by which a sleeper asked to be rung (`asleep` at the
// consumer, `want_credit` at the producer); who rings has exchanged it to 0 before.
class Bell {
 public:
  virtual ~Bell() = default;
  virtual void Ring(uint32_t& word) = 0;
  // Until rung, `timeout`, or the end of the peer; may return early.
  virtual void Sleep(uint32_t& word, absl::Duration timeout) = 0;
  // Whether somebody has rung since `word` was set.
  virtual bool Rung(uint32_t& word) = 0;
  // After a sleep that nobody ended although there is work: whether the ring for it is still arriving. Waits up to `grace`.
  virtual bool RungWithin(uint32_t& word, absl::Duration grace) = 0;
  // The process at the other end has ended. False where nobody watches it.
  virtual bool PeerEnded() = 0;

  // What has been sent is counted there.
  void CountInto(uint64_t& counter) { counter_ = &counter; }
  void CountSent() {
    if (counter_ != nullptr) CountUp(*counter_);
  }

 private:
  uint64_t* counter_ = nullptr;
};

class LaneProducerEnd : public LaneProducer {
 public:
  LaneProducerEnd(Lane lane, LaneCursors cursors, uint32_t self, uint32_t peer, std::unique_ptr<Bell> bell)
      : lane_(lane), self_(self), peer_(peer), head_(cursors.head), done_(cursors.done) {
    SetBell(std::move(bell));
  }

  absl::Status Push(const tb_desc& desc) override;
  absl::StatusOr<bool> HasCredit() override;
  bool ArmProgress() override;
  bool WaitForProgress(absl::Duration timeout) override;
  absl::StatusOr<uint32_t> Done() override;
  bool PeerEnded() override { return bell_->PeerEnded(); }
  uint32_t pushed() const override { return head_; }
  uint32_t capacity() const override { return lane_.capacity; }
  // Once, right after construction: a predecessor may have died between a descriptor and its doorbell.
  virtual void RingForHistory();

 protected:
  // Before anything is written: UNAVAILABLE where the transport cannot announce a descriptor now.
  virtual absl::Status Ready() { return absl::OkStatus(); }
  // The descriptor is in the lane and counts.
  virtual void Announce(const tb_desc&) { RingIfAsleep(); }
  void RingIfAsleep();
  // INVALID_ARGUMENT for a descriptor that is not from this end to the other, where the two have numbers.
  absl::Status CheckEnds(const tb_desc& desc) const;
  absl::Status ReadDone();
  void SetBell(std::unique_ptr<Bell> bell) {
    bell_ = std::move(bell);
    if (bell_) bell_->CountInto(lane_.header->doorbells);
  }

  const Lane lane_;
  const uint32_t self_, peer_;  // 0: not numbered
  uint32_t head_;
  uint32_t done_;
  std::unique_ptr<Bell> bell_;

 private:
  bool closed_ = false;
  bool stalled_ = false;
  uint32_t lie_ = 0;
};

class LaneConsumerEnd : public LaneConsumer {
 public:
  LaneConsumerEnd(Lane lane, LaneCursors cursors, uint32_t peer, std::unique_ptr<Bell> bell)
      : lane_(lane), peer_(peer), tail_(cursors.done), done_(cursors.done) {
    SetBell(std::move(bell));
  }

  absl::StatusOr<size_t> Poll(std::span<tb_desc> out) override;
  bool Arm() override;
  void Disarm(bool timed_out) override;
  bool Wait(absl::Duration timeout) override;
  void Release(uint32_t done) override;
  bool PeerEnded() override { return bell_->PeerEnded(); }
  uint32_t tail() const override { return tail_; }
  uint64_t late_wakeups() const override { return late_wakeups_; }

 protected:
  // The producer's cursor, checked. DATA_LOSS closes the lane.
  absl::StatusOr<uint32_t> ReadHead();
  // Of the slots [tail, head), how many may be taken, at most `limit`.
  virtual uint32_t Takeable(uint32_t head, uint32_t limit) { return std::min(head - tail_, limit); }
  // The descriptor at `cursor`, which may be taken.
  virtual tb_desc Take(uint32_t cursor);
  // A lying head counts as work: Poll then reports it.
  virtual bool HasWork(std::memory_order order);
  void CountLate() {
    ++late_wakeups_;
    CountUp(lane_.header->late_wakeups);
  }
  void SetBell(std::unique_ptr<Bell> bell) {
    bell_ = std::move(bell);
    if (bell_) bell_->CountInto(lane_.header->credits);
  }

  const Lane lane_;
  const uint32_t peer_;  // 0: not numbered
  uint32_t tail_;
  uint32_t done_;
  std::unique_ptr<Bell> bell_;
  bool closed_ = false;
  uint32_t idle_ = 0;  // sleeps in a row that ended by themselves
  uint64_t late_wakeups_ = 0;
};

}  // namespace tributary::aggregator
