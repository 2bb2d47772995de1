#include "aggregator/worker/seat.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "aggregator/core/strategy.h"
#include "common/crash_points.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr int64_t kUnknownGoal = std::numeric_limits<int64_t>::max() / 2;  // never reached, and nothing added to it overflows

void CopyText(char* to, size_t size, const std::string& text) {
  const size_t count = std::min(size - 1, text.size());
  std::memcpy(to, text.data(), count);
  to[count] = '\0';
}

absl::Status Broken() { return DataLoss("an update is not finite or out of range behind a block that was folded"); }

}  // namespace

// A daemon that is gone is no fault of the seat: the runtime notices and stops.
absl::Status Seat::Say(const WorkerMessage& message) {
  absl::Status sent = channel_->Send(message);
  return sent.code() == absl::StatusCode::kUnavailable ? absl::OkStatus() : sent;
}

// ---- what the daemon says ----

absl::Status Seat::SetAnchor(const WorkerMessage& message, UniqueFd anchor) {
  if (anchor_ != nullptr) return anchor_->ReplaceSocket(std::move(anchor));
  if (endpoint_) return InvalidArgument("seat {}: an anchor after its first lane", number_);
  if (message.transport != static_cast<uint32_t>(TransportKind::kSkMsg) && message.transport != static_cast<uint32_t>(TransportKind::kSkMsgInline)) {
    return InvalidArgument("seat {}: expected an SK_MSG transport, got kind {}", number_, message.transport);
  }
  TRIB_ASSIGN_OR_RETURN(auto made, SkMsgEndpoint::Create(std::move(anchor), message.dst, static_cast<TransportKind>(message.transport)));
  anchor_ = made.get();
  endpoint_ = std::move(made);
  return absl::OkStatus();
}

TransportEndpoint& Seat::Endpoint(int doorbell_fd) {
  if (!endpoint_) endpoint_ = MakeRingEndpoint(0, doorbell_fd);
  return *endpoint_;
}

LaneOptions Seat::Other(uint32_t peer, uint32_t lane, int ring_fd) const {
  if (anchor_ == nullptr) return {.ring_fd = ring_fd};
  return {.peer = peer, .lane = static_cast<uint16_t>(lane)};
}

absl::Status Seat::AddSegment(const WorkerMessage& message, UniqueFd fd) {
  if (message.pool > std::numeric_limits<uint16_t>::max() || message.segment > std::numeric_limits<uint16_t>::max()) {
    return InvalidArgument("seat {}: segment {} of pool {}: expected 16-bit numbers", number_, message.segment, message.pool);
  }
  return segments_.Add(static_cast<uint16_t>(message.pool), static_cast<uint16_t>(message.segment), std::move(fd),
                       message.segment_bytes, message.slot_bytes);
}

absl::Status Seat::Open(const WorkerMessage& message, UniqueFd lane, UniqueFd slab, int doorbell_fd, int progress_fd) {
  if (consumer_) return AlreadyExists("seat {}: opened twice", number_);
  const bool float_type = message.dtype == static_cast<uint32_t>(DType::kF32) || message.dtype == static_cast<uint32_t>(DType::kF64);
  const bool arithmetic = message.arithmetic == static_cast<uint32_t>(Arithmetic::kFloat64) ||
                          message.arithmetic == static_cast<uint32_t>(Arithmetic::kFixedPoint);
  if (!float_type || !arithmetic || message.float_count > TensorLayout::kMaxBytes ||
      message.counter_count > TensorLayout::kMaxBytes / 8 || message.first_element > message.float_count ||
      message.elements > message.float_count - message.first_element) {
    return InvalidArgument("seat {}: type {}, arithmetic {}, elements {}+{} of {}, {} counters: not a range of a layout", number_,
                           message.dtype, message.arithmetic, message.first_element, message.elements, message.float_count,
                           message.counter_count);
  }
  if (message.max_fold == 0 || message.max_fold > TB_MAX_BATCH) {
    return InvalidArgument("seat {}: expected to fold 1 to {} updates a pass, got {}", number_, TB_MAX_BATCH, message.max_fold);
  }
  max_fold_ = message.max_fold;
  if (message.timing > static_cast<uint32_t>(TimingKind::kJit)) {
    return InvalidArgument("seat {}: expected timing eager, lazy, batch or jit, got kind {}", number_, message.timing);
  }
  if (message.batch == 0) return InvalidArgument("seat {}: timing batch: expected at least 1 update, got 0", number_);
  timing_ = MakeTimingPolicy({.kind = static_cast<TimingKind>(message.timing), .batch = message.batch,
                              .age = absl::Microseconds(message.batch_age_us), .slack = absl::Microseconds(message.slack_us)});
  dtype_ = static_cast<DType>(message.dtype);
  if (message.codec > static_cast<uint32_t>(Codec::kTopK) || message.trainable_count > message.float_count || message.kept > message.trainable_count ||
      (message.codec != static_cast<uint32_t>(Codec::kPlain) && dtype_ != DType::kF32)) {
    return InvalidArgument("seat {}: codec {} with {} kept of {} trainable elements of {}, type {}: not an encoding", number_, message.codec, message.kept,
                           message.trainable_count, message.float_count, message.dtype);
  }
  encoding_ = {.codec = static_cast<Codec>(message.codec), .dtype = dtype_, .trainable = message.trainable_count, .floats = message.float_count,
               .counters = message.counter_count, .kept = message.kept};
  folds_counters_ = message.folds_counters != 0 && message.counter_count != 0;
  StrategySpec spec;
  spec.name = message.reducer;
  TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Strategy> strategy, MakeStrategy(spec));
  reducer_ = WithCodec(strategy->MakeReducer(dtype_, static_cast<Arithmetic>(message.arithmetic)), encoding_);
  TRIB_ASSIGN_OR_RETURN(lane_, SharedRegion::Receive(std::move(lane), message.lane_bytes));
  TRIB_ASSIGN_OR_RETURN(slab_, SharedRegion::Receive(std::move(slab), message.slab_bytes));
  lane_.fd.Reset();  // the mappings are enough
  slab_.fd.Reset();
  shape_ = {message.first_element, message.elements, static_cast<uint32_t>(reducer_->state_bytes_per_element()),
            folds_counters_ ? static_cast<uint32_t>(message.counter_count) : 0u};
  TRIB_ASSIGN_OR_RETURN(const Slab attached, Slab::Attach(slab_.bytes, shape_));
  TRIB_ASSIGN_OR_RETURN(consumer_, Endpoint(doorbell_fd).OpenConsumer(lane_.bytes, Other(message.src, message.lane, progress_fd)));
  lane_capacity_ = static_cast<uint32_t>((message.lane_bytes - sizeof(tb_lane_header)) / sizeof(tb_desc));
  fold_ = std::make_unique<SlabFold>(attached, reducer_.get());
  return Recover();
}

absl::Status Seat::AddChild(const WorkerMessage& message, UniqueFd lane, UniqueFd slab, int doorbell_fd, int progress_fd) {
  if (message.child >= TB_MAX_CHILDREN) {
    return InvalidArgument("seat {}: expected a child below {}, got {}", number_, TB_MAX_CHILDREN, message.child);
  }
  for (const Child& known : children_) {
    if (known.lap == message.lap && known.number == message.child) return absl::OkStatus();
  }
  if (!slabs_.contains(message.child_seat)) {
    TRIB_ASSIGN_OR_RETURN(slabs_[message.child_seat], ReadOnlyRegion::Receive(std::move(slab), message.slab_bytes));
  }
  Child child;
  child.lap = message.lap;
  child.number = message.child;
  child.seat = message.child_seat;
  TRIB_ASSIGN_OR_RETURN(child.region, SharedRegion::Receive(std::move(lane), message.lane_bytes));
  child.region.fd.Reset();
  TRIB_ASSIGN_OR_RETURN(child.consumer, Endpoint(doorbell_fd).OpenConsumer(child.region.bytes, Other(message.src, message.lane, progress_fd)));
  child.lane = static_cast<uint16_t>(message.lane);
  children_.push_back(std::move(child));
  return absl::OkStatus();
}

absl::Status Seat::SetRole(const WorkerMessage& message) {
  if (!opened()) return InvalidArgument("seat {}: a role before it was opened", number_);
  if (message.role == 0 || message.role > static_cast<uint32_t>(SeatRole::kTop)) {
    return InvalidArgument("seat {}: role {} does not exist", number_, message.role);
  }
  TRIB_CRASH_POINT(role_before_change);
  if (message.epoch > role_.epoch) {  // otherwise a repetition
    if (message.lap != role_.lap) {
      const int32_t expected = message.goal_known != 0 ? static_cast<int32_t>(message.goal_cursor - consumer_->tail()) : 0;
      arrivals_.OnRoundOpened(clock_.Now(), std::max(expected, 0));
    }
    role_.lap = message.lap;
    role_.epoch = message.epoch;
    role_.role = static_cast<SeatRole>(message.role);
    role_.goal_known = message.goal_known != 0;
    role_.goal_cursor = message.goal_cursor;
    role_.hurry = message.hurry != 0;
    role_.children = message.children;
    role_.depth = message.depth;
    std::erase_if(children_, [&](const Child& child) { return child.lap != role_.lap; });
    if (parent_ && parent_->lap != role_.lap) parent_.reset();
    const SlabFold::State now = fold_->state();
    // Promoted: what was a complete partial is now the beginning of a larger one. Nobody has been told of it.
    const bool complete = role_.role != SeatRole::kTop && (role_.children & ~now.total.merged) == 0;
    if (now.lap == role_.lap && now.published && !complete) fold_->Withdraw();
  }
  TRIB_CRASH_POINT(role_after_change);
  WorkerMessage taken;
  taken.kind = WorkerMessageKind::kRoleTaken;
  taken.job = number_;
  taken.epoch = message.epoch;
  return Say(taken);
}

absl::Status Seat::SetParent(const WorkerMessage& message, UniqueFd lane, UniqueFd doorbell, int doorbell_fd) {
  if (!opened()) return InvalidArgument("seat {}: a parent before it was opened", number_);
  parent_.reset();
  auto parent = std::make_unique<Parent>();
  parent->lap = message.lap;
  parent->lane = static_cast<uint16_t>(message.lane);
  parent->src = message.src;
  parent->dst = message.dst;
  TRIB_ASSIGN_OR_RETURN(parent->region, SharedRegion::Receive(std::move(lane), message.lane_bytes));
  parent->region.fd.Reset();
  parent->doorbell = std::move(doorbell);
  TRIB_ASSIGN_OR_RETURN(parent->producer, Endpoint(doorbell_fd).OpenProducer(parent->region.bytes,
                                                                             Other(message.dst, message.lane, parent->doorbell.get())));
  parent_ = std::move(parent);
  return Ship();
}

// ---- after a predecessor's death ----

// Brings lanes and slab together (nothing to do for a new job).
absl::Status Seat::Recover() {
  TRIB_ASSIGN_OR_RETURN(const SlabFold::Recovered found, fold_->Recover());
  TRIB_RETURN_IF_ERROR(TakeUpTo(found.completed_cursor));
  if (found.under_way && found.batch[0].kind == TB_KIND_PARTIAL) {
    std::vector<MergeInput> inputs;
    for (uint32_t i = 0; i < found.batch_size; ++i) {
      TRIB_ASSIGN_OR_RETURN(inputs.emplace_back(), LookAtPartial(found.batch[i]));
    }
    if (fold_->ResumeMerge(inputs) != FoldResult::kFolded) return DataLoss("a merged sum leaves the range of the accumulators");
    consumer_->Release(found.completed_cursor);
  } else if (found.under_way) {
    TRIB_RETURN_IF_ERROR(TakeUpTo(found.batch_done_cursor));
    std::vector<FoldInput> inputs;
    for (uint32_t i = 0; i < found.batch_size; ++i) {
      TRIB_ASSIGN_OR_RETURN(FoldInput input, Look(found.batch[i]));
      input.view.weight = found.batch_weight[i];
      if (!(std::isfinite(input.view.weight) && input.view.weight > 0)) {
        return DataLoss("slab record: weight {} of batch entry {}", input.view.weight, i);
      }
      inputs.push_back(input);
    }
    switch (fold_->ResumeFold(inputs)) {
      case FoldResult::kBroken:
        return Broken();
      case FoldResult::kUnchanged:  // as if the batch had never begun: find out which of them it is
        TRIB_RETURN_IF_ERROR(RefoldSingly(inputs, found));
        break;
      case FoldResult::kFolded:
        break;
    }
    Done(found.batch_done_cursor);
  } else {
    consumer_->Release(found.completed_cursor);
  }
  const SlabFold::State state = fold_->state();
  for (Child& child : children_) {
    if (child.lap == state.lap && (state.total.merged >> child.number & 1) != 0) TRIB_RETURN_IF_ERROR(TellMerged(child));
  }
  return absl::OkStatus();
}

// A recovered batch whose first block fails. Positions of its members within the lane are not recorded (refused ones may lie
// between), so commits are by the last cursor only, once for all that are left.
absl::Status Seat::RefoldSingly(std::vector<FoldInput> inputs, const SlabFold::Recovered& found) {
  for (size_t i = 0; i < inputs.size();) {
    if (IsFinite(inputs[i])) {
      ++i;
      continue;
    }
    TRIB_RETURN_IF_ERROR(Refuse(inputs[i].desc, InvalidArgument("the update is not finite")));
    inputs.erase(inputs.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (inputs.empty()) {
    fold_->Skip(found.batch_done_cursor);
  } else if (fold_->Fold(inputs, found.batch_done_cursor) != FoldResult::kFolded) {
    return DataLoss("the sums leave their range");
  }
  return absl::OkStatus();
}

// Of the whole float region: slow, and only reached when a fold has failed.
bool Seat::IsFinite(const FoldInput& input) const {
  const absl::StatusOr<ScanResult> scan = CheckEncoded(encoding_, {input.view.flat, encoding_.total_bytes()});
  return scan.ok() && scan->finite;
}

absl::Status Seat::TakeUpTo(uint32_t cursor) {
  uint32_t left = cursor - consumer_->tail();
  std::array<tb_desc, TB_MAX_BATCH> taken;
  while (left > 0) {
    TRIB_ASSIGN_OR_RETURN(const size_t count, consumer_->Poll(std::span(taken).first(std::min<size_t>(left, taken.size()))));
    if (count == 0) return DataLoss("slab record: cursor {} is {} past the lane's head", cursor, left);
    left -= static_cast<uint32_t>(count);
  }
  return absl::OkStatus();
}

// ---- taking ----

size_t Seat::Room() const {
  if (!InLap()) return 0;
  const size_t room = lane_capacity_ - std::min<size_t>(lane_capacity_, pending_.size());
  if (!role_.goal_known || (role_.role != SeatRole::kLeaf && role_.role != SeatRole::kMiddle)) return room;
  const auto left = static_cast<int32_t>(role_.goal_cursor - consumer_->tail());
  return left <= 0 ? 0 : std::min<size_t>(room, static_cast<size_t>(left));
}

absl::StatusOr<bool> Seat::Take() {
  bool any = false;
  std::array<tb_desc, TB_MAX_BATCH> descs;
  for (size_t room = Room(); room > 0; room = Room()) {
    TRIB_CRASH_POINT(worker_before_receive);
    TRIB_ASSIGN_OR_RETURN(const size_t count, consumer_->Poll(std::span(descs).first(std::min(room, descs.size()))));
    if (count == 0) break;
    any = true;
    const absl::Time now = clock_.Now();
    for (size_t i = 0; i < count; ++i) {
      pending_.push_back({descs[i], now});
      arrivals_.OnArrival(now);
    }
  }
  if (!InLap()) return any;
  for (Child& child : children_) {
    if (child.taken || child.merged || child.lap != role_.lap) continue;
    TRIB_ASSIGN_OR_RETURN(const size_t count, child.consumer->Poll(std::span(descs).first(1)));
    if (count == 0) continue;
    any = true;
    child.taken = true;
    child.waiting = {descs[0], clock_.Now()};
    child.waiting.desc.lane = child.lane;  // whose it is says the lane it came through, not a field
  }
  return any;
}

bool Seat::Arm() {
  bool work = false;
  // At the goal nothing is to be taken, and what raises the goal comes over the channel.
  if (Room() > 0) work = consumer_->Arm();
  for (Child& child : children_) {
    if (InLap() && child.lap == role_.lap && !child.taken && !child.merged) work = child.consumer->Arm() || work;
  }
  // A record for which there was no room is tried again; whether the parent has moved on is nothing to stay awake for.
  if (anchor_ != nullptr && anchor_->kind() == TransportKind::kSkMsgInline && parent_ && parent_->producer->Done().value_or(0) != parent_->producer->pushed()) {
    static_cast<void>(parent_->producer->ArmProgress());
  }
  return work;
}

void Seat::Replay() {
  if (consumer_) consumer_->Replay();
  for (Child& child : children_) child.consumer->Replay();
}

void Seat::Disarm(bool timed_out) {
  uint64_t late = 0;
  const auto disarm = [&](LaneConsumer& consumer) {
    late -= consumer.late_wakeups();
    consumer.Disarm(timed_out);
    late += consumer.late_wakeups();
  };
  disarm(*consumer_);
  for (Child& child : children_) disarm(*child.consumer);
  if (late != 0) TRIB_LOG(error, "seat {}: a doorbell was lost (late wake-up)", number_);
}

// ---- folding ----

absl::StatusOr<bool> Seat::Process() {
  look_at_ = absl::InfiniteFuture();
  if (!InLap()) return false;
  bool worked = false;
  const SlabFold::State state = fold_->state();
  TimingInput input;
  input.now = clock_.Now();
  if (state.handled > 0) input.update_time = absl::Nanoseconds(static_cast<double>(state.busy_ns) / static_cast<double>(state.handled));
  input.merge_time = input.update_time;  // not told apart
  input.depth = role_.depth;
  if (!pending_.empty() && due_ == 0) {
    input.queued = static_cast<int64_t>(pending_.size());
    input.goal = kUnknownGoal;
    if (role_.goal_known) {
      input.goal = input.queued + std::max(0, static_cast<int32_t>(role_.goal_cursor - consumer_->tail()));
      input.predicted_last = arrivals_.Predict(input.now);
    }
    input.oldest = pending_.front().arrived;
    const TimingDecision decision = timing_->Decide(input);
    due_ = role_.hurry || pending_.size() >= lane_capacity_ ? pending_.size() : static_cast<size_t>(decision.fold);
    if (due_ == 0) look_at_ = decision.wait_until;
  }
  if (due_ > 0) {
    TRIB_RETURN_IF_ERROR(FoldBatch());
    worked = true;
  }
  input.queued = 0;
  input.oldest = absl::InfiniteFuture();
  input.predicted_last.reset();  // who is the last child to be complete, and when, nobody has an idea of
  uint64_t missing = role_.children & ~fold_->state().total.merged;
  for (const Child& child : children_) {
    if (!child.taken || child.merged) continue;
    ++input.queued;
    input.oldest = std::min(input.oldest, child.waiting.arrived);
    missing &= ~(uint64_t{1} << child.number);
  }
  input.goal = input.queued + std::popcount(missing);
  if (input.queued > 0) {
    const TimingDecision decision = timing_->Decide(input);
    if (decision.fold > 0 || role_.hurry) {
      TRIB_RETURN_IF_ERROR(MergeWaiting());
      worked = true;
    } else {
      look_at_ = std::min(look_at_, decision.wait_until);
    }
  }
  TRIB_RETURN_IF_ERROR(CompleteIfAllIsIn());
  return worked;
}

absl::Status Seat::FoldBatch() {
  const absl::Time start = clock_.Now();
  const size_t count = std::min({pending_.size(), due_, size_t{max_fold_}});
  due_ -= count;
  const uint32_t begin = consumer_->tail() - static_cast<uint32_t>(pending_.size());
  const uint32_t end = begin + static_cast<uint32_t>(count);
  std::vector<FoldInput> inputs;
  std::vector<uint32_t> cursors;  // after inputs[i]
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<FoldInput> input = Look(pending_[i].desc);
    if (!input.ok()) {
      TRIB_RETURN_IF_ERROR(Refuse(pending_[i].desc, input.status()));
      continue;
    }
    inputs.push_back(*input);
    cursors.push_back(begin + static_cast<uint32_t>(i) + 1);
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
  if (inputs.empty()) {
    fold_->Skip(end);
  } else {
    TRIB_RETURN_IF_ERROR(FoldOrRefuse(inputs, cursors, end));
  }
  fold_->CountTime(static_cast<uint64_t>(absl::ToInt64Nanoseconds(clock_.Now() - start)), count);
  Done(end);
  return absl::OkStatus();
}

void Seat::Done(uint32_t cursor) {
  TRIB_CRASH_POINT(worker_before_done);
  consumer_->Release(cursor);
  TRIB_CRASH_POINT(worker_after_done);
}

absl::StatusOr<FoldInput> Seat::Look(const tb_desc& desc) {
  if (desc.kind != TB_KIND_UPDATE) return InvalidArgument("expected a descriptor of an update, got kind {}", desc.kind);
  if (desc.round != fold_->round()) {
    return FailedPrecondition("expected a descriptor of round {}, got round {}", fold_->round(), desc.round);
  }
  TRIB_ASSIGN_OR_RETURN(const SegmentMap::Object object, segments_.Find({desc.key_hi, desc.key_lo}));
  if (object.payload.size() != encoding_.total_bytes()) {
    return DataLoss("expected {} payload bytes, got {}", encoding_.total_bytes(), object.payload.size());
  }
  if (!(std::isfinite(object.header.weight) && object.header.weight > 0)) {
    return DataLoss("expected a finite weight > 0, got {}", object.header.weight);
  }
  FoldInput input;
  input.desc = desc;
  input.view = {object.payload.data(), object.header.weight};
  if (!object.runs.empty()) {
    WeightRuns runs;
    for (const tb_weight_run& run : object.runs) runs.push_back({.end = run.end, .factor = run.factor});
    if (const absl::Status good = CheckRuns(runs, encoding_.floats); !good.ok()) return DataLoss("{}", MessageOf(good));
    input.runs = std::make_shared<const WeightRuns>(std::move(runs));
    input.view.runs = *input.runs;
  }
  if (folds_counters_) input.counters = object.payload.data() + encoding_.counters_offset();
  return input;
}

absl::Status Seat::FoldOrRefuse(std::span<const FoldInput> inputs, std::span<const uint32_t> cursors, uint32_t end) {
  switch (fold_->Fold(inputs, end)) {
    case FoldResult::kFolded:
      return absl::OkStatus();
    case FoldResult::kBroken:
      return Broken();
    case FoldResult::kUnchanged:
      break;
  }
  // One of them is bad: one by one, so that only it is refused.
  for (size_t i = 0; i < inputs.size(); ++i) {
    switch (fold_->Fold(inputs.subspan(i, 1), cursors[i])) {
      case FoldResult::kFolded:
        break;
      case FoldResult::kBroken:
        return Broken();
      case FoldResult::kUnchanged:
        TRIB_RETURN_IF_ERROR(Refuse(inputs[i].desc, InvalidArgument("the update is not finite, or takes a sum out of range")));
        fold_->Skip(cursors[i]);
        break;
    }
  }
  fold_->Skip(end);
  return absl::OkStatus();
}

absl::Status Seat::Refuse(const tb_desc& desc, const absl::Status& why) {
  WorkerMessage message;
  message.kind = WorkerMessageKind::kRefused;
  message.job = number_;
  message.round = desc.round;
  message.key_hi = desc.key_hi;
  message.key_lo = desc.key_lo;
  message.code = static_cast<uint32_t>(why.code());
  CopyText(message.reason, sizeof(message.reason), MessageOf(why));
  return Say(message);
}

// ---- partials ----

// The lane says whose partial it is; of the descriptor only the nonce is believed, and only if that child's slab has it.
absl::StatusOr<MergeInput> Seat::LookAtPartial(const tb_desc& desc) {
  const SlabFold::State state = fold_->state();
  for (const Child& child : children_) {
    if (child.lap != state.lap || child.lane != desc.lane) continue;
    if (desc.kind != TB_KIND_PARTIAL || desc.round != state.round) {
      return DataLoss("child {}: expected a partial of round {}, got kind {} of round {}", child.number, state.round, desc.kind, desc.round);
    }
    TRIB_ASSIGN_OR_RETURN(const PartialView view, PartialView::Attach(slabs_.at(child.seat).bytes, shape_));
    MergeInput input;
    TRIB_ASSIGN_OR_RETURN(input.totals, view.Find(state.round, desc.key_lo));
    input.desc = desc;
    input.child = child.number;
    input.state = view.state();
    input.counters = view.counters();
    return input;
  }
  return DataLoss("a partial over lane {}, which no child of lap {} has", desc.lane, state.lap);
}

absl::Status Seat::MergeWaiting() {
  const absl::Time start = clock_.Now();
  std::vector<MergeInput> inputs;
  std::vector<Child*> merging;
  for (Child& child : children_) {
    if (!child.taken || child.merged || inputs.size() == TB_MAX_BATCH) continue;
    TRIB_ASSIGN_OR_RETURN(inputs.emplace_back(), LookAtPartial(child.waiting.desc));
    merging.push_back(&child);
  }
  if (fold_->Merge(inputs) != FoldResult::kFolded) return DataLoss("a merged sum leaves the range of the accumulators");
  fold_->CountTime(static_cast<uint64_t>(absl::ToInt64Nanoseconds(clock_.Now() - start)), inputs.size());
  for (Child* child : merging) TRIB_RETURN_IF_ERROR(TellMerged(*child));
  return absl::OkStatus();
}

absl::Status Seat::TellMerged(Child& child) {
  TRIB_CRASH_POINT(worker_before_partial_done);
  if (child.consumer->tail() == 0) {  // a replacement that has not taken it
    tb_desc desc;
    TRIB_ASSIGN_OR_RETURN(const size_t count, child.consumer->Poll({&desc, 1}));
    if (count != 1) return DataLoss("slab record: the partial of child {} is merged, its lane is empty", child.number);
  }
  child.consumer->Release(child.consumer->tail());
  child.taken = child.merged = true;
  TRIB_CRASH_POINT(worker_after_partial_done);
  WorkerMessage message;
  message.kind = WorkerMessageKind::kMerged;
  message.job = number_;
  message.lap = child.lap;
  message.child = child.number;
  return Say(message);
}

absl::Status Seat::CompleteIfAllIsIn() {
  if (told_epoch_ == role_.epoch || (role_.role != SeatRole::kLeaf && role_.role != SeatRole::kMiddle)) return absl::OkStatus();
  const SlabFold::State state = fold_->state();
  if (!role_.goal_known || !pending_.empty() || state.completed_cursor != role_.goal_cursor ||
      (role_.children & ~state.total.merged) != 0) {
    return absl::OkStatus();
  }
  if (!state.fresh) {
    TRIB_CRASH_POINT(partial_before_publish);
    fold_->Publish(role_.lap);
    TRIB_RETURN_IF_ERROR(Ship());
  }
  told_epoch_ = role_.epoch;
  WorkerMessage message;
  message.kind = WorkerMessageKind::kComplete;
  message.job = number_;
  message.lap = role_.lap;
  message.epoch = role_.epoch;
  message.folded = state.total.folded;
  return Say(message);
}

// Once a lap: the lane's head says whether a predecessor has done it.
absl::Status Seat::Ship() {
  const SlabFold::State state = fold_->state();
  if (!parent_ || parent_->lap != role_.lap || !InLap() || !state.published || parent_->producer->pushed() != 0) return absl::OkStatus();
  TRIB_CRASH_POINT(partial_before_send);
  const tb_desc desc{.dst = parent_->dst, .src = parent_->src, .key_hi = number_, .key_lo = state.nonce, .round = state.round,
                     .kind = TB_KIND_PARTIAL, .lane = parent_->lane};
  TRIB_RETURN_IF_ERROR(parent_->producer->Push(desc));
  TRIB_CRASH_POINT(partial_after_send);
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
