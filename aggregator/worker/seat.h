// One seat: a worker's part of a job. Updates come over its lane from the daemon, partials over a lane from each child; both go into
// its slab; when the role has all its inputs the slab is published and its descriptor goes up the lane to the parent.
//
//   leaf     updates; complete at its goal                    middle, top   a promoted leaf (or a fresh seat) that merges partials too
//   range    updates, a slice of the elements each; reports nothing but its lane's `done`
//
// Leaf, middle and top are one program: a role is only which inputs are expected (SetRole), and may change at any moment. A promoted
// seat keeps its slab: its partial is the parent's first input. Partials are read where their leaf wrote them, through a read-only
// map, and merged exactly once: the slab's record says which are in.
// A replacement is told the same things in the same order (anchor, segments, children, Open, role, parent) and goes on where the record says.
//
// Borrows the channel and the doorbells. Thread-compatible. Errors end the seat: the worker says kFailed and drops it.
#pragma once

#include <absl/time/time.h>

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "aggregator/core/planners/timing.h"
#include "aggregator/core/reducer.h"
#include "aggregator/store/object_pool.h"
#include "aggregator/store/slab.h"
#include "aggregator/transport/skmsg_endpoint.h"
#include "aggregator/transport/transport.h"
#include "aggregator/transport/worker_channel.h"
#include "aggregator/worker/slab_fold.h"
#include "common/clock.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

class Seat {
 public:
  Seat(uint32_t number, WorkerChannel* channel) : number_(number), channel_(channel) {}

  // `ring` unless it is given an anchor, before all else. A second one takes the first one's place.
  absl::Status SetAnchor(const WorkerMessage& message, UniqueFd anchor);
  absl::Status AddSegment(const WorkerMessage& message, UniqueFd fd);
  absl::Status AddChild(const WorkerMessage& message, UniqueFd lane, UniqueFd slab, int doorbell_fd, int progress_fd);
  absl::Status Open(const WorkerMessage& message, UniqueFd lane, UniqueFd slab, int doorbell_fd, int progress_fd);
  absl::Status SetRole(const WorkerMessage& message);
  absl::Status SetParent(const WorkerMessage& message, UniqueFd lane, UniqueFd doorbell, int doorbell_fd);
  bool opened() const { return fold_ != nullptr; }

  // Takes what has come. True: something did. The channel is drained between Take and Process: the segment a descriptor names was
  // announced before the descriptor was pushed, so it is mapped by then.
  absl::StatusOr<bool> Take();
  // Folds one batch and merges what is there, as the timing decides; completes the role. True: call again before sleeping.
  absl::StatusOr<bool> Process();

  // Before and after sleeping, as LaneConsumer's. `look_at`: when Process has something to do although nothing comes.
  bool Arm();
  void Disarm(bool timed_out);
  absl::Time look_at() const { return look_at_; }
  // Of its anchor: what to sleep on besides the worker's doorbell (-1: nothing), and what to call when it is readable.
  int wait_fd() const { return anchor_ != nullptr ? anchor_->wait_fd() : -1; }
  void Drain() { endpoint_->Drain(); }
  void Replay();

 private:
  struct Waiting {
    tb_desc desc{};
    absl::Time arrived;
  };
  struct Child {
    uint32_t lap = 0;
    uint32_t number = 0;     // its bit
    uint32_t seat = 0;
    uint16_t lane = 0;
    SharedRegion region;
    std::unique_ptr<LaneConsumer> consumer;
    bool taken = false;      // its descriptor, which is `waiting` until it is merged
    bool merged = false;
    Waiting waiting;
  };
  struct Parent {
    uint32_t lap = 0;
    uint16_t lane = 0;
    uint32_t src = 0, dst = 0;
    SharedRegion region;
    UniqueFd doorbell;
    std::unique_ptr<LaneProducer> producer;
  };
  struct Role {
    uint32_t lap = 0, epoch = 0;
    SeatRole role = SeatRole::kParked;
    bool goal_known = false;
    uint32_t goal_cursor = 0;
    bool hurry = false;
    uint64_t children = 0;
    uint32_t depth = 0;
  };

  TransportEndpoint& Endpoint(int doorbell_fd);
  // `ring_fd`: the eventfd of the other end.
  LaneOptions Other(uint32_t peer, uint32_t lane, int ring_fd) const;
  absl::Status Say(const WorkerMessage& message);
  absl::Status Recover();
  absl::Status TakeUpTo(uint32_t cursor);
  absl::Status RefoldSingly(std::vector<FoldInput> inputs, const SlabFold::Recovered& found);
  absl::StatusOr<FoldInput> Look(const tb_desc& desc);
  absl::StatusOr<MergeInput> LookAtPartial(const tb_desc& desc);
  bool IsFinite(const FoldInput& input) const;
  absl::Status Refuse(const tb_desc& desc, const absl::Status& why);
  void Done(uint32_t cursor);

  bool InLap() const { return role_.lap != 0 && role_.lap == fold_->state().lap; }
  size_t Room() const;  // how many updates may be taken off the lane
  absl::Status FoldBatch();
  absl::Status FoldOrRefuse(std::span<const FoldInput> inputs, std::span<const uint32_t> cursors, uint32_t end);
  absl::Status MergeWaiting();
  absl::Status TellMerged(Child& child);
  absl::Status CompleteIfAllIsIn();
  absl::Status Ship();

  const uint32_t number_;
  WorkerChannel* const channel_;
  const BootClock clock_;
  std::unique_ptr<TransportEndpoint> endpoint_;  // before its lanes, which it outlives
  SkMsgEndpoint* anchor_ = nullptr;              // it, if it is one
  SegmentMap segments_;
  SharedRegion lane_, slab_;
  SlabShape shape_;
  std::unique_ptr<Reducer> reducer_;
  std::unique_ptr<LaneConsumer> consumer_;
  std::unique_ptr<SlabFold> fold_;
  std::unique_ptr<TimingPolicy> timing_;
  LastArrivalEstimator arrivals_;               // of updates in this lap
  uint32_t max_fold_ = 0;
  uint32_t lane_capacity_ = 0;
  DType dtype_ = DType::kF32;
  UpdateEncoding encoding_;
  bool folds_counters_ = false;

  Role role_;
  uint32_t told_epoch_ = 0;                     // of the last kComplete
  std::deque<Waiting> pending_;                 // taken off the lane, not folded
  size_t due_ = 0;                              // of them, to be folded without asking the timing again
  std::vector<Child> children_;
  std::map<uint32_t, ReadOnlyRegion> slabs_;    // of children, by their seat: kept from lap to lap
  std::unique_ptr<Parent> parent_;
  absl::Time look_at_ = absl::InfiniteFuture();
};

}  // namespace tributary::aggregator
