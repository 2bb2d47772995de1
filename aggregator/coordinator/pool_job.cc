#include "aggregator/coordinator/pool_job.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "aggregator/core/kernels.h"
#include "aggregator/core/strategy.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

// Contiguous ranges on block borders, so that the blocks, and with them the bits, are the same for any number of workers.
std::vector<std::pair<size_t, size_t>> SplitRange(size_t elements, uint32_t workers) {
  const size_t blocks = (elements + kBlockElements - 1) / kBlockElements;
  const size_t shards = std::clamp<size_t>(blocks, 1, workers);
  std::vector<std::pair<size_t, size_t>> ranges;
  for (size_t i = 0; i < shards; ++i) {
    const size_t first = std::min(elements, blocks * i / shards * kBlockElements);
    const size_t last = std::min(elements, blocks * (i + 1) / shards * kBlockElements);
    ranges.emplace_back(first, last - first);
  }
  return ranges;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PoolJob>> PoolJob::Create(const WorkerPool::JobOptions& options, ObjectPool* objects,
                                                         PoolContext* context) {
  WorkerMessage probe;
  if (options.strategy.size() >= sizeof(probe.reducer)) {
    return InvalidArgument("job {}: expected a strategy name of at most {} characters, got '{}'", options.job,
                           sizeof(probe.reducer) - 1, options.strategy);
  }
  StrategySpec spec;
  spec.name = options.strategy;
  TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Strategy> strategy, MakeStrategy(spec));
  std::unique_ptr<PoolJob> job(new PoolJob(options, objects, context));
  job->reducer_ = strategy->MakeReducer(options.layout.float_dtype(), options.arithmetic);
  TRIB_RETURN_IF_ERROR(Annotate(job->MakeSeats(), fmt::format("job {}", options.job)));
  return job;
}

absl::StatusOr<PoolJob::Seat> PoolJob::MakeSeat(uint32_t worker, const SlabShape& shape) {
  Seat seat;
  seat.worker = worker;
  seat.wire = context_->next_wire++;
  seat.shape = shape;
  TRIB_ASSIGN_OR_RETURN(const size_t slab_bytes, SlabBytes(shape));
  TRIB_ASSIGN_OR_RETURN(seat.slab_region, SharedRegion::Create("tributary-slab", slab_bytes));
  TRIB_ASSIGN_OR_RETURN(seat.slab, Slab::Format(seat.slab_region.bytes, shape));
  TRIB_ASSIGN_OR_RETURN(seat.lane_region, SharedRegion::Create("tributary-lane", LaneBytes(context_->lane_capacity)));
  TRIB_RETURN_IF_ERROR(FormatLane(seat.lane_region.bytes, context_->lane_capacity));
  TRIB_ASSIGN_OR_RETURN(seat.lane, AttachRingProducer(seat.lane_region.bytes, {.wait_fd = context_->progress_fd,
                                                                               .ring_fd = context_->fleet->doorbell(worker)}));
  return seat;
}

absl::Status PoolJob::MakeSeats() {
  const auto ranges = SplitRange(options_.layout.float_count(), context_->workers);
  std::vector<Seat> seats;
  for (size_t i = 0; i < ranges.size(); ++i) {
    // Small jobs have few seats: let different jobs use different workers.
    const auto worker = static_cast<uint32_t>((i + options_.job) % context_->workers);
    TRIB_ASSIGN_OR_RETURN(Seat seat, MakeSeat(worker, {ranges[i].first, ranges[i].second,
                                                       static_cast<uint32_t>(reducer_->state_bytes_per_element()),
                                                       i == 0 ? static_cast<uint32_t>(options_.layout.counter_count()) : 0u}));
    seats.push_back(std::move(seat));
  }
  seats_ = std::move(seats);
  lost_seats_.clear();
  queue_.pushed = 0;
  queue_.base = 0;
  return absl::OkStatus();
}

// ---- telling workers ----

void PoolJob::TellSegment(const Seat& seat, const Segment& segment) {
  WorkerMessage message;
  message.kind = WorkerMessageKind::kSegment;
  message.job = seat.wire;
  message.pool = objects_->pool_id();
  message.segment = segment.number;
  message.segment_bytes = segment.bytes;
  message.slot_bytes = objects_->slot_bytes();
  context_->fleet->Tell(seat.worker, message, {segment.fd});
}

// Segments first: a replacement may have to go on with a batch the moment it has lane and slab.
void PoolJob::TellSeat(const Seat& seat) {
  for (const Segment& segment : segments_) TellSegment(seat, segment);
  const TensorLayout& layout = options_.layout;
  WorkerMessage message;
  message.kind = WorkerMessageKind::kOpenJob;
  message.job = seat.wire;
  message.dtype = static_cast<uint32_t>(layout.float_dtype());
  message.arithmetic = static_cast<uint32_t>(options_.arithmetic);
  message.first_element = seat.shape.first_element;
  message.elements = seat.shape.elements;
  message.float_count = layout.float_count();
  message.counter_count = layout.counter_count();
  message.folds_counters = &seat == &seats_.front() ? 1 : 0;
  message.lane_bytes = seat.lane_region.bytes.size();
  message.slab_bytes = seat.slab_region.bytes.size();
  std::memcpy(message.reducer, options_.strategy.data(), options_.strategy.size());  // length checked in Create
  context_->fleet->Tell(seat.worker, message, {seat.lane_region.fd.get(), seat.slab_region.fd.get()});
}

void PoolJob::TellClosed() {
  for (const Seat& seat : seats_) {
    WorkerMessage message;
    message.kind = WorkerMessageKind::kCloseJob;
    message.job = seat.wire;
    context_->fleet->Tell(seat.worker, message);
  }
}

void PoolJob::Open() {
  opened_ = true;
  for (const Seat& seat : seats_) TellSeat(seat);
}

void PoolJob::Greet(uint32_t worker) {
  for (const Seat& seat : seats_) {
    if (seat.worker != worker) continue;
    if (opened_) {
      TellSeat(seat);
    } else {  // WorkerPool::OpenJob is under way: Open will send the rest
      for (const Segment& segment : segments_) TellSegment(seat, segment);
    }
  }
}

void PoolJob::OnSegment(uint16_t segment, int fd, size_t bytes) {
  for (const Segment& known : segments_) {
    if (known.number == segment) return;
  }
  segments_.push_back({segment, fd, bytes});
  if (!opened_) return;  // Open or BeginRound sends them all
  for (const Seat& seat : seats_) TellSegment(seat, segments_.back());
}

void PoolJob::Close() {
  TellClosed();
  ReleaseEntries();
}

// ---- updates ----

void PoolJob::ReleaseEntries() {
  for (const Entry& entry : queue_.entries) objects_->Release(entry.key);
  queue_.entries.clear();
  queue_.pushed = 0;
}

void PoolJob::Lose(std::string reason) {
  if (lost_) return;
  TRIB_LOG(warn, "job {}: the sums of round {} are lost: {}", options_.job, round_, reason);
  lost_ = true;
  opened_ = false;
  TellClosed();
  // A worker may still be reading these objects; whatever it makes of them goes into slabs nobody looks at again.
  ReleaseEntries();
  lost_seats_ = std::move(seats_);  // somebody may be reading sums: they stay mapped until BeginRound or CloseJob
  seats_.clear();
  context_->reports->push_back({PoolReport::Kind::kLost, options_.job, {}, std::move(reason)});
}

// Pushes what has a credit in every lane.
void PoolJob::Pump() {
  while (!lost_ && queue_.pushed < queue_.entries.size()) {
    for (Seat& seat : seats_) {
      const absl::StatusOr<uint32_t> done = seat.lane->Done();
      if (!done.ok()) return Lose(MessageOf(done.status()));
      if (seat.lane->pushed() - *done >= seat.lane->capacity()) return;
    }
    const Entry& entry = queue_.entries[queue_.pushed];
    for (size_t i = 0; i < seats_.size(); ++i) {
      const tb_desc desc{.dst = seats_[i].worker + 1, .src = 0, .key_hi = entry.key.hi, .key_lo = entry.key.lo, .round = round_,
                         .kind = TB_KIND_UPDATE, .lane = static_cast<uint16_t>(i)};
      if (absl::Status status = seats_[i].lane->Push(desc); !status.ok()) return Lose(MessageOf(status));
    }
    ++queue_.pushed;
  }
}

bool PoolJob::Arm() {
  bool moved = false;
  if (!under_way()) return false;
  for (Seat& seat : seats_) {
    moved = seat.lane->ArmProgress() || moved;
    const absl::StatusOr<uint32_t> done = seat.lane->Done();  // Pump may have read it since ReadCursors did
    moved = moved || !done.ok() || *done != seat.done;
  }
  return moved;
}

void PoolJob::ReadCursors() {
  for (Seat& seat : seats_) {
    const absl::StatusOr<uint32_t> done = seat.lane->Done();
    if (!done.ok()) {
      context_->fleet->Kill(seat.worker, done.status());
      return Lose(MessageOf(done.status()));
    }
    seat.done = *done;
  }
}

// Reports the entries that every lane has passed. The refusals up to `seat.done` have been read from the channels before.
void PoolJob::Complete() {
  if (lost_ || seats_.empty()) return;
  size_t passed = queue_.pushed;
  for (const Seat& seat : seats_) passed = std::min<size_t>(passed, seat.done - queue_.base);
  const uint64_t all = seats_.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << seats_.size()) - 1;
  for (size_t i = 0; i < passed; ++i) {
    Entry entry = std::move(queue_.entries.front());
    queue_.entries.pop_front();
    --queue_.pushed;
    ++queue_.base;
    objects_->Release(entry.key);
    if (entry.refused_by == 0) {
      for (const Seat& seat : seats_) ++(*context_->folded)[seat.worker];
      context_->reports->push_back({PoolReport::Kind::kFolded, options_.job, entry.update, ""});
    } else if (entry.refused_by == all) {
      context_->reports->push_back({PoolReport::Kind::kRefused, options_.job, entry.update, std::move(entry.reason)});
    } else {
      return Lose(fmt::format("update {}: refused by {} of {} workers and folded by the others ({})", ToHex(entry.update),
                              std::popcount(entry.refused_by), seats_.size(), entry.reason));
    }
  }
}

bool PoolJob::Settle() {
  Complete();
  Pump();
  return Arm();
}

bool PoolJob::HasSeat(uint32_t wire) const {
  return std::any_of(seats_.begin(), seats_.end(), [wire](const Seat& seat) { return seat.wire == wire; });
}

absl::Status PoolJob::Hear(uint32_t worker, const WorkerMessage& message) {
  for (size_t i = 0; i < seats_.size(); ++i) {
    if (seats_[i].wire != message.job) continue;
    if (seats_[i].worker != worker) return InvalidArgument("a message about a seat in job {} that is another worker's", options_.job);
    if (message.kind == WorkerMessageKind::kFailed) {
      Lose(message.reason);
      return absl::OkStatus();
    }
    if (message.kind != WorkerMessageKind::kRefused) {
      return InvalidArgument("kind {} is not for the daemon", static_cast<uint32_t>(message.kind));
    }
    for (Entry& entry : queue_.entries) {
      if (entry.key != ObjectKey{message.key_hi, message.key_lo}) continue;
      entry.refused_by |= uint64_t{1} << i;
      entry.reason = message.reason;
      break;
    }
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

void PoolJob::AddWork(uint32_t worker, WorkerFleet::Owner::Work* work) const {
  for (const Seat& seat : seats_) {
    if (seat.worker != worker) continue;
    const tb_slab_header& header = seat.slab.header();
    work->stamp = work->stamp * 1000003 + header.completed_cursor * uint64_t{65537} + header.blocks_done + header.batch_size;
    work->waiting = work->waiting || seat.done != seat.lane->pushed();
  }
}

uint32_t PoolJob::queued(uint32_t worker) const {
  uint32_t sum = 0;
  for (const Seat& seat : seats_) {
    if (seat.worker == worker) sum += static_cast<uint32_t>(queue_.entries.size());
  }
  return sum;
}

// ---- rounds ----

absl::Status PoolJob::CheckOpen() const {
  if (!lost_ && round_open_) return absl::OkStatus();
  return FailedPrecondition("job {}: no round is open{}", options_.job, lost_ ? " (its sums were lost)" : "");
}

absl::Status PoolJob::BeginRound(uint32_t round) {
  if (!queue_.entries.empty()) {
    return FailedPrecondition("job {}: round {} cannot begin, {} updates are under way", options_.job, round, queue_.entries.size());
  }
  if (lost_) {
    TRIB_RETURN_IF_ERROR(Annotate(MakeSeats(), fmt::format("job {}", options_.job)));
    lost_ = false;
    Open();
  }
  // The workers sleep as far as this job goes: everything pushed is done, and `done` was their last touch of the slab.
  for (Seat& seat : seats_) seat.slab.BeginLap(round, ++lap_, /*keep_sums=*/false);
  round_ = round;
  round_open_ = true;
  return absl::OkStatus();
}

absl::Status PoolJob::Fold(const UpdateId& update, const ObjectKey& key) {
  TRIB_RETURN_IF_ERROR(CheckOpen());
  if (queue_.entries.size() >= objects_->capacity_slots()) {
    return ResourceExhausted("job {}: {} updates are queued, as many as the pool has slots", options_.job, queue_.entries.size());
  }
  queue_.entries.push_back({update, key, 0, ""});
  Pump();
  return absl::OkStatus();
}

absl::StatusOr<WorkerPool::Sums> PoolJob::ReadSums() {
  TRIB_RETURN_IF_ERROR(CheckOpen());
  if (!queue_.entries.empty()) {
    return FailedPrecondition("job {}: expected nothing under way, got {} updates", options_.job, queue_.entries.size());
  }
  WorkerPool::Sums sums;
  for (Seat& seat : seats_) {
    if (seat.slab.header().fresh != 0) return FailedPrecondition("job {}: nothing was folded in round {}", options_.job, round_);
    sums.pieces.push_back({seat.shape.first_element, seat.shape.elements, seat.slab.state()});
    if (seat.shape.counters != 0) sums.counters = {seat.slab.counters(), seat.shape.counters};
  }
  return sums;
}

absl::Status PoolJob::WriteSums(std::span<const std::byte> state, std::span<const int64_t> counters) {
  const TensorLayout& layout = options_.layout;
  const size_t element_bytes = reducer_->state_bytes_per_element();
  if (lost_ || !round_open_ || !queue_.entries.empty()) {
    return FailedPrecondition("job {}: sums are restored right after BeginRound only", options_.job);
  }
  if (state.size() != layout.float_count() * element_bytes || counters.size() != layout.counter_count()) {
    return InvalidArgument("job {}: expected {} bytes of sums and {} counters, got {} and {}", options_.job,
                           layout.float_count() * element_bytes, layout.counter_count(), state.size(), counters.size());
  }
  for (Seat& seat : seats_) {
    if (seat.slab.header().fresh == 0) return FailedPrecondition("job {}: the slab of round {} is in use", options_.job, round_);
  }
  for (Seat& seat : seats_) {
    if (seat.slab.state_bytes() != 0) {
      std::memcpy(seat.slab.state(), state.data() + seat.shape.first_element * element_bytes, seat.slab.state_bytes());
    }
    if (seat.shape.counters != 0) std::memcpy(seat.slab.counters(), counters.data(), counters.size_bytes());
    seat.slab.header().fresh = 0;
  }
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
