#include "aggregator/transport/lane.h"

#include <absl/time/clock.h>
#include <poll.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/crash_points.h"

namespace tributary::aggregator {

std::string_view NameOf(TransportKind kind) {
  switch (kind) {
    case TransportKind::kRing: return "ring";
    case TransportKind::kSkMsg: return "skmsg";
    case TransportKind::kSkMsgInline: return "skmsg-inline";
  }
  return "unknown";
}

absl::Duration SafetyTimeout(uint32_t idle) { return idle < 2 ? kSafetyTimeout : 10 * kSafetyTimeout; }

bool PollIn(int fd, absl::Duration timeout, int other_fd) {
  pollfd entries[2] = {{fd, POLLIN, 0}, {other_fd, POLLIN, 0}};  // poll() passes over a negative fd
  const timespec limit = absl::ToTimespec(std::max(timeout, absl::ZeroDuration()));
  return ::ppoll(entries, 2, &limit, nullptr) > 0 && entries[0].revents != 0;
}

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

absl::StatusOr<LaneCursors> ReadCursors(const Lane& lane) {
  const uint32_t done = Atomic(lane.header->done).load(std::memory_order_acquire);
  const uint32_t head = Atomic(lane.header->head).load(std::memory_order_acquire);
  if (head - done > lane.capacity) {
    return DataLoss("lane: expected at most {} descriptors under way, got head {} and done {}", lane.capacity, head, done);
  }
  return LaneCursors{head, done};
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

absl::StatusOr<bool> ArmForAbsentConsumer(std::span<std::byte> region) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  // As a consumer's Arm(): the flag first, then the cursor.
  Atomic(lane.header->asleep).store(1, std::memory_order_seq_cst);
  TRIB_ASSIGN_OR_RETURN(const LaneCursors cursors, ReadCursors(lane));
  return cursors.head != cursors.done;
}

absl::Status SetLanePaused(std::span<std::byte> region, bool paused) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  Atomic(lane.header->paused).store(paused ? 1 : 0, std::memory_order_seq_cst);
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> LaneBacklog(std::span<std::byte> region) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const LaneCursors cursors, ReadCursors(lane));
  return cursors.head - cursors.done;
}

LaneStats& LaneStats::operator+=(const LaneStats& other) {
  pushed += other.pushed;
  released += other.released;
  doorbells += other.doorbells;
  credits += other.credits;
  stalls += other.stalls;
  late_wakeups += other.late_wakeups;
  return *this;
}

LaneStats ReadLaneStats(std::span<std::byte> region) {
  const absl::StatusOr<Lane> lane = AttachLane(region);
  if (!lane.ok()) return {};
  const auto count = [](uint64_t& counter) { return std::atomic_ref<uint64_t>(counter).load(std::memory_order_relaxed); };
  tb_lane_header& header = *lane->header;
  LaneStats stats;
  stats.pushed = Atomic(header.head).load(std::memory_order_acquire);
  stats.released = Atomic(header.done).load(std::memory_order_acquire);
  stats.doorbells = count(header.doorbells);
  stats.credits = count(header.credits);
  stats.stalls = count(header.stalls);
  stats.late_wakeups = count(header.late_wakeups);
  return stats;
}

// ---- producer ----

absl::Status LaneProducerEnd::CheckEnds(const tb_desc& desc) const {
  if ((self_ != 0 && desc.src != self_) || (peer_ != 0 && desc.dst != peer_)) {
    return InvalidArgument("lane: expected a descriptor from {} to {}, got one from {} to {}", self_, peer_, desc.src, desc.dst);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> LaneProducerEnd::HasCredit() {
  TRIB_RETURN_IF_ERROR(ReadDone());
  const bool credit = head_ - done_ < lane_.capacity;
  if (!credit && !stalled_) CountUp(lane_.header->stalls);
  stalled_ = !credit;
  return credit;
}

absl::Status LaneProducerEnd::Push(const tb_desc& desc) {
  TRIB_RETURN_IF_ERROR(CheckEnds(desc));
  TRIB_ASSIGN_OR_RETURN(const bool credit, HasCredit());
  if (!credit) return Unavailable("lane: no credit, all {} slots are in use", lane_.capacity);
  if (Atomic(lane_.header->paused).load(std::memory_order_acquire) != 0) return Unavailable("lane: paused by the daemon");
  TRIB_RETURN_IF_ERROR(Ready());
  std::memcpy(&lane_.Slot(head_), &desc, sizeof(desc));
  ++head_;
  // Both accesses are seq_cst, as are the consumer's store of `asleep` and load of `head` in Arm(): in the single order of
  // these four, either the consumer sees the new head or RingIfAsleep sees it asleep. No fence needed (and TSan knows none).
  Atomic(lane_.header->head).store(head_, std::memory_order_seq_cst);
  TRIB_CRASH_POINT(lane_after_push);
  Announce(desc);
  return absl::OkStatus();
}

void LaneProducerEnd::RingIfAsleep() {
  if (Atomic(lane_.header->asleep).load(std::memory_order_seq_cst) != 0 &&
      Atomic(lane_.header->asleep).exchange(0, std::memory_order_seq_cst) == 1) {
    TRIB_CRASH_POINT(lane_before_ring);
    bell_->Ring(lane_.header->asleep);
  }
}

void LaneProducerEnd::RingForHistory() {
  if (head_ == done_) return;
  Atomic(lane_.header->asleep).exchange(0, std::memory_order_seq_cst);
  bell_->Ring(lane_.header->asleep);
}

bool LaneProducerEnd::ArmProgress() {
  // Mirror of Push: want_credit store, then done load, against the consumer's done store, then want_credit exchange.
  Atomic(lane_.header->want_credit).store(1, std::memory_order_seq_cst);
  return closed_ || Atomic(lane_.header->done).load(std::memory_order_seq_cst) != done_;
}

bool LaneProducerEnd::WaitForProgress(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!ArmProgress() && !bell_->PeerEnded()) {
    const absl::Duration left = std::min(deadline - absl::Now(), kSafetyTimeout);
    if (left <= absl::ZeroDuration()) break;
    bell_->Sleep(lane_.header->want_credit, left);
  }
  Atomic(lane_.header->want_credit).store(0, std::memory_order_relaxed);
  return closed_ || Atomic(lane_.header->done).load(std::memory_order_acquire) != done_;
}

absl::StatusOr<uint32_t> LaneProducerEnd::Done() {
  TRIB_RETURN_IF_ERROR(ReadDone());
  return done_;
}

// Takes over the consumer's cursor: it only rises, and never past what was pushed.
absl::Status LaneProducerEnd::ReadDone() {
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

// ---- consumer ----

absl::StatusOr<uint32_t> LaneConsumerEnd::ReadHead() {
  // Counterpart: the producer's store in Push; the slots up to head are written.
  const uint32_t head = Atomic(lane_.header->head).load(std::memory_order_acquire);
  if (closed_ || head - done_ > lane_.capacity || head - done_ < tail_ - done_) {
    closed_ = true;
    return DataLoss("lane: expected the producer's cursor between {} and {}, got {}; lane closed", tail_, done_ + lane_.capacity, head);
  }
  return head;
}

tb_desc LaneConsumerEnd::Take(uint32_t cursor) {
  tb_desc desc;
  std::memcpy(&desc, &lane_.Slot(cursor), sizeof(desc));
  return desc;
}

absl::StatusOr<size_t> LaneConsumerEnd::Poll(std::span<tb_desc> out) {
  TRIB_ASSIGN_OR_RETURN(const uint32_t head, ReadHead());
  const uint32_t count = Takeable(head, static_cast<uint32_t>(std::min<size_t>(out.size(), lane_.capacity)));
  for (uint32_t i = 0; i < count; ++i) {
    out[i] = Take(tail_ + i);
    // Who sent it is the lane's owner; a producer that writes another name is not to be believed in anything.
    if (peer_ != 0 && out[i].src != peer_) {
      closed_ = true;
      return DataLoss("lane: expected descriptors from {}, got one from {}; lane closed", peer_, out[i].src);
    }
  }
  tail_ += count;
  Atomic(lane_.header->tail).store(tail_, std::memory_order_relaxed);  // for people; nobody decides by it
  if (count > 0) TRIB_CRASH_POINT(lane_after_poll);
  return count;
}

bool LaneConsumerEnd::HasWork(std::memory_order order) { return closed_ || Atomic(lane_.header->head).load(order) != tail_; }

bool LaneConsumerEnd::Arm() {
  Atomic(lane_.header->asleep).store(1, std::memory_order_seq_cst);
  return HasWork(std::memory_order_seq_cst);
}

void LaneConsumerEnd::Disarm(bool timed_out) {
  // Work came without a doorbell so far. The producer may be between its two steps: give it that time before calling it late. One
  // that died there is no defect: its replacement rings for what it finds in the lane.
  if (timed_out && HasWork(std::memory_order_acquire) && !bell_->RungWithin(lane_.header->asleep, kDoorbellGrace) && !bell_->PeerEnded()) {
    CountLate();
  }
  Atomic(lane_.header->asleep).store(0, std::memory_order_relaxed);
}

bool LaneConsumerEnd::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!Arm() && !bell_->PeerEnded()) {
    const absl::Duration left = std::min(deadline - absl::Now(), SafetyTimeout(idle_));
    if (left <= absl::ZeroDuration()) break;
    bell_->Sleep(lane_.header->asleep, left);
    ++idle_;
    if (!bell_->Rung(lane_.header->asleep)) Disarm(/*timed_out=*/true);  // the sleep ended by itself
    if (HasWork(std::memory_order_acquire)) break;
  }
  if (HasWork(std::memory_order_acquire)) idle_ = 0;
  Disarm(/*timed_out=*/false);
  return HasWork(std::memory_order_acquire);
}

void LaneConsumerEnd::Release(uint32_t done) {
  // Our own caller's mistake would let the producer overwrite the replay log: never past what was taken, never back.
  if (done - done_ > tail_ - done_) return;
  done_ = done;
  Atomic(lane_.header->done).store(done, std::memory_order_seq_cst);
  TRIB_CRASH_POINT(lane_after_release);
  if (Atomic(lane_.header->want_credit).load(std::memory_order_seq_cst) != 0 &&
      Atomic(lane_.header->want_credit).exchange(0, std::memory_order_seq_cst) == 1) {
    bell_->Ring(lane_.header->want_credit);
  }
}

}  // namespace tributary::aggregator
