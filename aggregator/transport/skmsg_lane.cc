#include "aggregator/transport/skmsg_lane.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "aggregator/transport/lane.h"
#include "common/crash_points.h"

namespace tributary::aggregator {
namespace {

bool SameDesc(const tb_desc& a, const tb_desc& b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// An inline lane's end, to which its bell hands what concerns records.
class RecordSink {
 public:
  virtual void OnRecord(const tb_desc&) {}
  virtual void OnNewSocket() = 0;

 protected:
  ~RecordSink() = default;
};

// Doorbells of a lane whose ends sleep on anchors. Ring() sends a record of `kind` to the peer.
class SkMsgBell final : public Bell, public SkMsgEndpoint::Port {
 public:
  static absl::StatusOr<std::unique_ptr<SkMsgBell>> Make(SkMsgEndpoint* endpoint, SkMsgEndpoint::Role role, const LaneOptions& options) {
    std::unique_ptr<SkMsgBell> bell(new SkMsgBell(endpoint, role, options));
    TRIB_RETURN_IF_ERROR(endpoint->Register(bell->key_, bell.get()));
    bell->registered_ = true;
    return bell;
  }
  ~SkMsgBell() override {
    if (registered_) endpoint_->Unregister(key_);
  }

  void Ring(uint32_t& word) override {
    Ring();
    // The other end still sleeps: let the next push or release ring again.
    if (owed_) Atomic(word).store(1, std::memory_order_seq_cst);
  }
  void Ring() {
    // Without room the ring is owed: it is tried again before the next sleep, and the other end looks once in a while anyway.
    const SkMsgEndpoint::SendResult sent = endpoint_->Send(doorbell_);
    owed_ = sent == SkMsgEndpoint::SendResult::kFull;
    if (sent == SkMsgEndpoint::SendResult::kSent) CountSent();
  }
  void Sleep(uint32_t&, absl::Duration timeout) override {
    if (owed_) Ring();
    endpoint_->Sleep(timeout, peer_pidfd_);
  }
  // The flag alone is no proof here: a record can go astray on its way, and that would be a defect too.
  bool Rung(uint32_t& word) override { return Atomic(word).load(std::memory_order_acquire) == 0 && rings_ != rings_seen_; }
  bool RungWithin(uint32_t& word, absl::Duration grace) override {
    const absl::Time deadline = absl::Now() + grace;
    while (!Rung(word)) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return false;
      if (PollIn(endpoint_->wait_fd(), std::min(left, absl::Milliseconds(1)))) endpoint_->Drain();
    }
    return true;
  }
  bool PeerEnded() override { return peer_pidfd_ >= 0 && PollIn(peer_pidfd_, absl::ZeroDuration()); }

  void NoteArmed() { rings_seen_ = rings_; }
  void OnDoorbell() override { ++rings_; }
  void OnRecord(const tb_desc& record) override {
    if (records_ != nullptr) records_->OnRecord(record);
  }
  void OnNewSocket() override {
    Ring();  // what was rung through the old socket may have gone nowhere; a ring too many is harmless
    if (records_ != nullptr) records_->OnNewSocket();
  }
  void SetRecords(RecordSink* records) { records_ = records; }
  SkMsgEndpoint& endpoint() { return *endpoint_; }
  int peer_pidfd() const { return peer_pidfd_; }

 private:
  SkMsgBell(SkMsgEndpoint* endpoint, SkMsgEndpoint::Role role, const LaneOptions& options)
      : endpoint_(endpoint), key_(role, options.peer, options.lane), peer_pidfd_(options.peer_pidfd) {
    doorbell_.dst = options.peer;
    doorbell_.src = endpoint->self();
    doorbell_.kind = role == SkMsgEndpoint::Role::kProducer ? TB_KIND_DOORBELL : TB_KIND_CREDIT;
    doorbell_.lane = options.lane;
  }
  SkMsgEndpoint* const endpoint_;
  const SkMsgEndpoint::PortKey key_;
  const int peer_pidfd_;
  tb_desc doorbell_{};
  RecordSink* records_ = nullptr;
  bool registered_ = false;
  bool owed_ = false;
  uint64_t rings_ = 0, rings_seen_ = 0;
};

// `skmsg`: the common consumer, which only has to say when a doorbell counts as "since then".
class DoorbellConsumer final : public LaneConsumerEnd {
 public:
  DoorbellConsumer(Lane lane, LaneCursors cursors, uint32_t peer, std::unique_ptr<SkMsgBell> bell)
      : LaneConsumerEnd(lane, cursors, peer, nullptr), doorbell_(bell.get()) {
    SetBell(std::move(bell));
  }
  bool Arm() override {
    doorbell_->NoteArmed();
    return LaneConsumerEnd::Arm();
  }

 private:
  SkMsgBell* const doorbell_;
};

// `skmsg-inline`: a record for every descriptor. They are sent again, from a private copy, when there was no room or the socket changed.
class InlineProducer final : public LaneProducerEnd, public RecordSink {
 public:
  InlineProducer(Lane lane, LaneCursors cursors, uint32_t self, uint32_t peer, std::unique_ptr<SkMsgBell> bell)
      : LaneProducerEnd(lane, cursors, self, peer, nullptr), endpoint_(&bell->endpoint()), log_(lane.capacity), unsent_(cursors.head) {
    bell->SetRecords(this);
    SetBell(std::move(bell));
    // The predecessor's, which anyone with the lane may have changed since: what is not from us to the peer is not sent in our name.
    for (uint32_t cursor = done_; cursor != head_; ++cursor) std::memcpy(&Logged(cursor), &lane_.Slot(cursor), sizeof(tb_desc));
  }
  void RingForHistory() override { Resend(); }
  bool ArmProgress() override {
    SendUnsent();
    return LaneProducerEnd::ArmProgress();
  }
  void OnNewSocket() override { Resend(); }

 protected:
  absl::Status Ready() override {
    if (SendUnsent()) return absl::OkStatus();
    return Unavailable("lane: {} records wait for room, the daemon does not read its dead letters", head_ - unsent_);
  }
  void Announce(const tb_desc& desc) override {
    Logged(head_ - 1) = desc;
    TRIB_CRASH_POINT(skmsg_before_record);
    SendUnsent();
  }

 private:
  tb_desc& Logged(uint32_t cursor) { return log_[cursor & (lane_.capacity - 1)]; }
  bool SendUnsent() {
    for (; unsent_ != head_; ++unsent_) {
      const tb_desc& desc = Logged(unsent_);
      if (!CheckEnds(desc).ok()) continue;
      const SkMsgEndpoint::SendResult sent = endpoint_->Send(desc);
      if (sent == SkMsgEndpoint::SendResult::kFull) return false;
      if (sent == SkMsgEndpoint::SendResult::kSent) bell_->CountSent();
    }
    return true;
  }
  // Records of what was not released may have gone nowhere; the consumer passes over those it has.
  void Resend() {
    if (!ReadDone().ok()) return;
    unsent_ = done_;
    SendUnsent();
  }

  SkMsgEndpoint* const endpoint_;
  std::vector<tb_desc> log_;  // slots [done, head) as they were pushed
  uint32_t unsent_;           // records of slots [unsent, head) were not sent
};

class InlineConsumer final : public LaneConsumerEnd, public RecordSink {
 public:
  InlineConsumer(Lane lane, LaneCursors cursors, uint32_t peer, std::unique_ptr<SkMsgBell> bell, uint64_t* stray)
      : LaneConsumerEnd(lane, cursors, peer, nullptr), bell_of_records_(bell.get()), stray_(stray), records_(lane.capacity),
        announced_(lane.capacity), replay_until_(cursors.head), search_from_(cursors.done) {
    bell->SetRecords(this);
    SetBell(std::move(bell));
  }

  absl::StatusOr<size_t> Poll(std::span<tb_desc> out) override {
    if (!HasWork(std::memory_order_acquire)) bell_of_records_->endpoint().Drain();
    return LaneConsumerEnd::Poll(out);
  }
  // Reads nothing: what an event loop reads between arming its lanes and sleeping would no longer wake it. An unread record will.
  bool Arm() override { return HasWork(std::memory_order_acquire); }
  void Disarm(bool timed_out) override {
    // The record is the wake-up. Late is one that was read before the sleep, or lies there without having made the socket readable.
    if (!timed_out || bell_of_records_->endpoint().Readable()) return;
    const uint64_t received = bell_of_records_->endpoint().counters().received;
    const bool missed = HasWork(std::memory_order_acquire);
    bell_of_records_->endpoint().Drain();
    if (missed || bell_of_records_->endpoint().counters().received != received) CountLate();
  }
  bool Wait(absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    for (; !HasWork(std::memory_order_acquire); ++idle_) {
      const absl::Duration left = std::min(deadline - absl::Now(), SafetyTimeout(idle_));
      const bool last = left <= absl::ZeroDuration() || bell_->PeerEnded();
      if (last) {
        bell_of_records_->endpoint().Drain();
        break;
      }
      bell_of_records_->endpoint().Sleep(left, bell_of_records_->peer_pidfd());
    }
    if (!HasWork(std::memory_order_acquire)) return false;
    idle_ = 0;
    return true;
  }
  void Replay() override { replay_until_ = Atomic(lane_.header->head).load(std::memory_order_acquire); }

  // What the old socket still held is gone with it. Whoever pushes from now on reaches the new one.
  void OnNewSocket() override { Replay(); }
  void OnRecord(const tb_desc& record) override {
    const absl::StatusOr<uint32_t> head = ReadHead();
    if (!head.ok()) return;  // Poll will say so
    // The first slot that is equal and has no record yet; nearly always the first one looked at.
    if (static_cast<int32_t>(tail_ - search_from_) > 0) search_from_ = tail_;
    bool all_announced = true;
    for (uint32_t cursor = search_from_; cursor != *head; ++cursor) {
      const size_t index = cursor & (lane_.capacity - 1);
      if (announced_[index]) {
        if (all_announced) search_from_ = cursor + 1;
        continue;
      }
      all_announced = false;
      tb_desc slot;
      std::memcpy(&slot, &lane_.Slot(cursor), sizeof(slot));
      if (!SameDesc(slot, record)) continue;
      announced_[index] = true;
      records_[index] = record;
      return;
    }
    ++*stray_;
  }

 protected:
  uint32_t Takeable(uint32_t head, uint32_t limit) override {
    uint32_t count = 0;
    while (count < limit && tail_ + count != head && SlotIsReady(tail_ + count)) ++count;
    return count;
  }
  tb_desc Take(uint32_t cursor) override {
    const size_t index = cursor & (lane_.capacity - 1);
    if (!announced_[index]) return LaneConsumerEnd::Take(cursor);
    announced_[index] = false;
    return records_[index];  // what the kernel let through, not what the slot may say by now
  }
  bool HasWork(std::memory_order order) override { return closed_ || (LaneConsumerEnd::HasWork(order) && SlotIsReady(tail_)); }

 private:
  bool SlotIsReady(uint32_t cursor) const {
    return announced_[cursor & (lane_.capacity - 1)] || static_cast<int32_t>(replay_until_ - cursor) > 0;
  }

  SkMsgBell* const bell_of_records_;
  uint64_t* const stray_;
  std::vector<tb_desc> records_;
  std::vector<bool> announced_;  // per slot: its record has come; for slots [tail, head) only
  uint32_t replay_until_;        // slots before it may be taken without a record
  uint32_t search_from_;         // all of [tail, search_from) are announced
};

}  // namespace

absl::StatusOr<std::unique_ptr<LaneProducer>> MakeSkMsgProducer(SkMsgEndpoint& endpoint, std::span<std::byte> region, const LaneOptions& options) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const LaneCursors cursors, ReadCursors(lane));
  TRIB_ASSIGN_OR_RETURN(auto bell, SkMsgBell::Make(&endpoint, SkMsgEndpoint::Role::kProducer, options));
  std::unique_ptr<LaneProducerEnd> producer;
  if (endpoint.kind() == TransportKind::kSkMsgInline) {
    producer = std::make_unique<InlineProducer>(lane, cursors, endpoint.self(), options.peer, std::move(bell));
  } else {
    producer = std::make_unique<LaneProducerEnd>(lane, cursors, endpoint.self(), options.peer, std::move(bell));
  }
  producer->RingForHistory();
  return producer;
}

absl::StatusOr<std::unique_ptr<LaneConsumer>> MakeSkMsgConsumer(SkMsgEndpoint& endpoint, std::span<std::byte> region, const LaneOptions& options,
                                                                uint64_t* stray) {
  TRIB_ASSIGN_OR_RETURN(const Lane lane, AttachLane(region));
  TRIB_ASSIGN_OR_RETURN(const LaneCursors cursors, ReadCursors(lane));
  TRIB_ASSIGN_OR_RETURN(auto bell, SkMsgBell::Make(&endpoint, SkMsgEndpoint::Role::kConsumer, options));
  if (endpoint.kind() == TransportKind::kSkMsgInline) {
    return std::make_unique<InlineConsumer>(lane, cursors, options.peer, std::move(bell), stray);
  }
  return std::make_unique<DoorbellConsumer>(lane, cursors, options.peer, std::move(bell));
}

}  // namespace tributary::aggregator
