#include "aggregator/coordinator/pool_job.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>
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

absl::Status CheckHierarchy(const WorkerPool::JobOptions& options) {
  const PoolHierarchy& hierarchy = options.hierarchy;
  if (hierarchy.max_fold == 0 || hierarchy.max_fold > TB_MAX_BATCH) {
    return InvalidArgument("job {}: expected 1 to {} updates a pass, got {}", options.job, TB_MAX_BATCH, hierarchy.max_fold);
  }
  if (hierarchy.timing.batch < 1 || hierarchy.timing.batch > TB_MAX_LANE_CAPACITY) {
    return InvalidArgument("job {}: timing batch: expected at least 1 update and at most {}, got {}", options.job, TB_MAX_LANE_CAPACITY,
                           hierarchy.timing.batch);
  }
  if (hierarchy.load_window <= absl::ZeroDuration()) {
    return InvalidArgument("job {}: expected a load window above 0, got {}", options.job, absl::FormatDuration(hierarchy.load_window));
  }
  if (hierarchy.shape != PoolShape::kTree) return absl::OkStatus();
  if (hierarchy.leaves == 0 || hierarchy.leaves > TreeState::kMaxLeaves) {
    return InvalidArgument("job {}: expected 1 to {} leaves, got {}", options.job, TreeState::kMaxLeaves, hierarchy.leaves);
  }
  if (hierarchy.fan_in == 1) return InvalidArgument("job {}: expected a fan-in of 0 (no middles) or at least 2, got 1", options.job);
  const StrategyEntry* entry = FindStrategy(options.strategy);
  if (entry != nullptr && entry->trait == StrategyTrait::kNeedsAll) {
    return InvalidArgument("job {}: strategy '{}' needs all updates at once: sums of some of them, as a tree merges, are of no use to it",
                           options.job, options.strategy);
  }
  return absl::OkStatus();
}

}  // namespace

uint32_t SlabCount(const PoolHierarchy& hierarchy) {
  if (hierarchy.shape != PoolShape::kTree) return 1;
  if (hierarchy.reuse) return hierarchy.leaves;
  const uint32_t groups = hierarchy.fan_in == 0 ? 1 : (hierarchy.leaves + hierarchy.fan_in - 1) / hierarchy.fan_in;
  return hierarchy.leaves + (groups > 1 ? groups : 0) + 1;
}

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
  TRIB_RETURN_IF_ERROR(CheckHierarchy(options));
  std::unique_ptr<PoolJob> job(new PoolJob(options, objects, context));
  job->reducer_ = strategy->MakeReducer(options.layout.float_dtype(), options.arithmetic);
  absl::StatusOr<std::unique_ptr<JobWiring>> wiring = JobWiring::Open(context->wiring);
  if (!wiring.ok()) return Annotate(wiring.status(), fmt::format("job {}", options.job));
  job->wiring_ = *std::move(wiring);
  TRIB_RETURN_IF_ERROR(Annotate(job->MakeSeats(), fmt::format("job {}", options.job)));
  return job;
}

absl::StatusOr<size_t> PoolJob::SlabMemory(const WorkerPool::JobOptions& options) {
  TRIB_RETURN_IF_ERROR(CheckHierarchy(options));
  StrategySpec spec;
  spec.name = options.strategy;
  TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Strategy> strategy, MakeStrategy(spec));
  const std::unique_ptr<Reducer> reducer = strategy->MakeReducer(options.layout.float_dtype(), options.arithmetic);
  TRIB_ASSIGN_OR_RETURN(const size_t slab, SlabBytes({0, options.layout.float_count(), static_cast<uint32_t>(reducer->state_bytes_per_element()),
                                                      static_cast<uint32_t>(options.layout.counter_count())}));
  return slab * SlabCount(options.hierarchy);  // shards add headers of a few pages each, which nobody counts
}

// ---- seats ----

SlabShape PoolJob::WholeShape() const {
  return {0, options_.layout.float_count(), static_cast<uint32_t>(reducer_->state_bytes_per_element()),
          static_cast<uint32_t>(options_.layout.counter_count())};
}

absl::StatusOr<PoolJob::Seat> PoolJob::MakeSeat(uint32_t number, std::optional<uint32_t> worker, const SlabShape& shape) {
  Seat seat;
  seat.wire = context_->next_wire++;
  seat.shape = shape;
  TRIB_ASSIGN_OR_RETURN(const size_t slab_bytes, SlabBytes(shape));
  TRIB_ASSIGN_OR_RETURN(seat.slab_region, SharedRegion::Create("tributary-slab", slab_bytes));
  TRIB_ASSIGN_OR_RETURN(seat.slab, Slab::Format(seat.slab_region.bytes, shape));
  TRIB_ASSIGN_OR_RETURN(seat.lane_region, SharedRegion::Create("tributary-lane", LaneBytes(context_->lane_capacity)));
  TRIB_RETURN_IF_ERROR(FormatLane(seat.lane_region.bytes, context_->lane_capacity));
  seat.own_worker = !worker.has_value();
  if (worker) {
    seat.worker = *worker;
    ++context_->seats[*worker];
  } else {
    TRIB_ASSIGN_OR_RETURN(seat.worker, context_->fleet->Add());
    context_->tallies[seat.worker] = {};
    ++stats_.starts;
  }
  const auto connect = [&]() -> absl::Status {
    TRIB_ASSIGN_OR_RETURN(seat.id, wiring_->AddSeat(seat.worker));
    TRIB_ASSIGN_OR_RETURN(seat.lane, wiring_->OpenUpdates(seat.lane_region.bytes, seat.id, static_cast<uint16_t>(number),
                                                          context_->fleet->doorbell(seat.worker)));
    return absl::OkStatus();
  };
  if (absl::Status connected = connect(); !connected.ok()) {
    ReleaseWorker(seat);
    return connected;
  }
  return seat;
}

absl::Status PoolJob::MakeSeats() {
  const PoolHierarchy& hierarchy = options_.hierarchy;
  seats_.clear();
  lost_seats_.clear();
  queues_.clear();
  used_ = false;
  if (hierarchy.shape == PoolShape::kTree) {
    tree_ = std::make_unique<TreeState>(
        TreeState::Options{.leaves = hierarchy.leaves, .fan_in = hierarchy.fan_in, .reuse = hierarchy.reuse});
    for (uint32_t i = 0; i < hierarchy.leaves; ++i) {
      absl::StatusOr<Seat> seat = MakeSeat(i, hierarchy.reuse ? std::optional(ChooseWorker()) : std::nullopt, WholeShape());
      if (!seat.ok()) {
        EndSeats();
        seats_.clear();
        queues_.clear();
        return seat.status();
      }
      seat->queue = i;
      seats_[i] = *std::move(seat);
      queues_[i].seats = {i};
    }
    return absl::OkStatus();
  }
  uint32_t shards = hierarchy.shards == 0 ? context_->workers : std::min(hierarchy.shards, context_->workers);
  if (hierarchy.shape == PoolShape::kFlat) shards = 1;
  const auto ranges = SplitRange(options_.layout.float_count(), shards);
  for (uint32_t i = 0; i < ranges.size(); ++i) {
    SlabShape shape = WholeShape();
    shape.first_element = ranges[i].first;
    shape.elements = ranges[i].second;
    if (i != 0) shape.counters = 0;
    absl::StatusOr<Seat> seat = MakeSeat(i, ChooseWorker(), shape);
    if (!seat.ok()) {
      EndSeats();
      seats_.clear();
      queues_.clear();
      return seat.status();
    }
    seats_[i] = *std::move(seat);
    queues_[0].seats.push_back(i);
  }
  return absl::OkStatus();
}

void PoolJob::EndSeat(Seat& seat) {
  WorkerMessage message;
  message.kind = WorkerMessageKind::kCloseJob;
  message.job = seat.wire;
  context_->fleet->Tell(seat.worker, message);
  context_->ended_lanes += ReadLaneStats(seat.lane_region.bytes);
  ReleaseWorker(seat);
}

// What went through lanes that end counts on.
void PoolJob::EndEdges() {
  for (const Edge& edge : edges_) context_->ended_lanes += ReadLaneStats(edge.region.bytes);
  edges_.clear();
}

void PoolJob::ReleaseWorker(const Seat& seat) {
  if (!seat.own_worker) {
    --context_->seats[seat.worker];
    return;
  }
  context_->tallies.erase(seat.worker);
  context_->fleet->Retire(seat.worker);
}

// The pool's worker with fewest seats, one that has a process rather than one that has not. Ties: small jobs have few seats, let different
// jobs use different workers.
uint32_t PoolJob::ChooseWorker() const {
  uint32_t best = 0;
  const auto cost = [this](uint32_t worker) {
    const auto seats = context_->seats.find(worker);
    return std::tuple(seats == context_->seats.end() ? 0 : seats->second, context_->fleet->cold(worker),
                      (worker + context_->workers - options_.job % context_->workers) % context_->workers);
  };
  for (uint32_t worker = 1; worker < context_->workers; ++worker) {
    if (cost(worker) < cost(best)) best = worker;
  }
  return best;
}

void PoolJob::EndSeats() {
  for (auto& [number, seat] : seats_) EndSeat(seat);
  EndEdges();
}

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

// A process that has the seat begins with an anchor of its own.
void PoolJob::TellAnchor(const Seat& seat) {
  if (wiring_->kind() == TransportKind::kRing || context_->fleet->pid(seat.worker) == 0) return;
  const absl::StatusOr<UniqueFd> anchor = wiring_->NewAnchor(seat.id);
  if (!anchor.ok()) return context_->fleet->Kill(seat.worker, anchor.status());  // out of descriptors; its replacement may have more luck
  WorkerMessage message;
  message.kind = WorkerMessageKind::kAnchor;
  message.job = seat.wire;
  message.transport = static_cast<uint32_t>(wiring_->kind());
  message.dst = seat.id.value();
  context_->fleet->Tell(seat.worker, message, {anchor->get()});
}

// Anchor, segments and children first: a replacement may have to go on with a batch the moment it has lane and slab.
void PoolJob::TellSeat(uint32_t number) {
  const Seat& seat = seats_.at(number);
  TellAnchor(seat);
  for (const Segment& segment : segments_) TellSegment(seat, segment);
  for (const Edge& edge : edges_) {
    if (edge.to == number) TellChild(edge);
  }
  const TensorLayout& layout = options_.layout;
  const PoolHierarchy& hierarchy = options_.hierarchy;
  WorkerMessage message;
  message.kind = WorkerMessageKind::kOpenJob;
  message.job = seat.wire;
  message.dtype = static_cast<uint32_t>(layout.float_dtype());
  message.arithmetic = static_cast<uint32_t>(options_.arithmetic);
  message.first_element = seat.shape.first_element;
  message.elements = seat.shape.elements;
  message.float_count = layout.float_count();
  message.counter_count = layout.counter_count();
  message.trainable_count = layout.trainable_count();
  message.codec = static_cast<uint32_t>(options_.codec);
  message.kept = options_.kept;
  message.folds_counters = seat.shape.counters != 0 ? 1 : 0;
  message.lane = static_cast<uint16_t>(number);
  message.src = wiring_->daemon_id();
  message.lane_bytes = seat.lane_region.bytes.size();
  message.slab_bytes = seat.slab_region.bytes.size();
  message.timing = static_cast<uint32_t>(hierarchy.timing.kind);
  const auto microseconds = [](absl::Duration d) { return static_cast<uint32_t>(std::clamp<int64_t>(absl::ToInt64Microseconds(d), 0, UINT32_MAX)); };
  message.batch = static_cast<uint32_t>(hierarchy.timing.batch);  // in range: checked in Create
  message.batch_age_us = microseconds(hierarchy.timing.age);
  message.slack_us = microseconds(hierarchy.timing.slack);
  message.max_fold = hierarchy.max_fold;
  std::memcpy(message.reducer, options_.strategy.data(), options_.strategy.size());  // length checked in Create
  context_->fleet->Tell(seat.worker, message, {seat.lane_region.fd.get(), seat.slab_region.fd.get()});
  if (seat.role_lap == lap_ && seat.role != SeatRole::kParked) TellRole(seat);
  for (const Edge& edge : edges_) {
    if (edge.from == number) TellParent(edge);
  }
}

void PoolJob::Open() {
  opened_ = true;
  for (const auto& [number, seat] : seats_) TellSeat(number);
}

void PoolJob::Greet(uint32_t worker) {
  for (const auto& [number, seat] : seats_) {
    if (seat.worker != worker) continue;
    if (opened_) {
      TellSeat(number);
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
  for (const auto& [number, seat] : seats_) TellSegment(seat, segments_.back());
}

void PoolJob::Close() {
  EndSeats();
  ReleaseEntries();
}

// ---- updates ----

size_t PoolJob::queued_entries() const {
  size_t sum = waiting_.size();
  for (const auto& [number, queue] : queues_) sum += queue.entries.size();
  return sum;
}

void PoolJob::ReleaseEntries() {
  for (auto& [number, queue] : queues_) {
    for (const Entry& entry : queue.entries) objects_->Release(entry.key);
    queue.entries.clear();
    queue.pushed = 0;
  }
  for (const Entry& entry : waiting_) objects_->Release(entry.key);
  waiting_.clear();
}

void PoolJob::Lose(std::string reason) {
  if (lost_) return;
  TRIB_LOG(warn, "job {}: the sums of round {} are lost: {}", options_.job, round_, reason);
  lost_ = true;
  opened_ = false;
  EndSeats();
  // A worker may still be reading these objects; whatever it makes of them goes into slabs nobody looks at again.
  ReleaseEntries();
  // Somebody may be reading sums: they stay mapped until BeginRound or CloseJob.
  for (auto& [number, seat] : seats_) lost_seats_.push_back(std::move(seat));
  seats_.clear();
  queues_.clear();
  CountInHand(context_->clock.Now());
  context_->reports->push_back({PoolReport::Kind::kLost, options_.job, {}, std::move(reason)});
}

// Pushes what has a credit in every lane.
void PoolJob::Pump(Queue& queue) {
  while (queue.pushed < queue.entries.size()) {
    for (const uint32_t number : queue.seats) {
      Seat& seat = seats_.at(number);
      const absl::StatusOr<bool> credit = seat.lane->HasCredit();
      if (!credit.ok()) return Lose(MessageOf(credit.status()));
      if (!*credit) return;
    }
    const Entry& entry = queue.entries[queue.pushed];
    for (const uint32_t number : queue.seats) {
      Seat& seat = seats_.at(number);
      const tb_desc desc{.dst = seat.id.value(), .src = wiring_->daemon_id(), .key_hi = entry.key.hi, .key_lo = entry.key.lo, .round = round_,
                         .kind = TB_KIND_UPDATE, .lane = static_cast<uint16_t>(number)};
      if (absl::Status status = wiring_->Push(*seat.lane, desc); !status.ok()) return Lose(MessageOf(status));
    }
    ++queue.pushed;
  }
}

void PoolJob::Enqueue(uint32_t number, Entry entry) {
  Queue& queue = queues_.at(number);
  const absl::Time now = context_->clock.Now();
  for (const uint32_t seat_number : queue.seats) {
    Seat& seat = seats_.at(seat_number);
    ++seat.assigned;
    context_->tallies[seat.worker].arrivals.Count(now);
  }
  CountInHand(now);  // before this one: a rest may be over by now
  entry.arrived = now;
  queue.entries.push_back(std::move(entry));
  queue.arrivals.OnArrival(now);
  if (queue.entries.size() == 1 || queue.resting) Judge(queue, now);  // otherwise the seats are at work: it is in hand
  CountInHand(now);
  Pump(queue);
}

bool PoolJob::under_way() const {
  if (lost_) return false;
  if (tree_ && tree_->closed() && !tree_->done()) return true;
  return std::any_of(queues_.begin(), queues_.end(), [](const auto& item) { return item.second.pushed != 0; });
}

bool PoolJob::Arm() {
  bool moved = false;
  if (lost_) return false;
  for (auto& [number, queue] : queues_) {
    if (queue.pushed == 0) continue;
    for (const uint32_t seat_number : queue.seats) {
      Seat& seat = seats_.at(seat_number);
      moved = seat.lane->ArmProgress() || moved;
      const absl::StatusOr<uint32_t> done = seat.lane->Done();  // Pump may have read it since ReadCursors did
      moved = moved || !done.ok() || *done != seat.done;
    }
  }
  return moved;
}

void PoolJob::ReadCursors() {
  for (auto& [number, seat] : seats_) {
    const absl::StatusOr<uint32_t> done = seat.lane->Done();
    if (!done.ok()) {
      context_->fleet->Kill(seat.worker, done.status());
      return Lose(MessageOf(done.status()));
    }
    seat.done = *done;
  }
}

// Reports the entries that every lane has passed. The refusals up to `seat.done` have been read from the channels before.
void PoolJob::Complete(Queue& queue) {
  size_t passed = queue.pushed;
  for (const uint32_t number : queue.seats) passed = std::min<size_t>(passed, seats_.at(number).done - queue.base);
  const uint64_t all = queue.seats.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << queue.seats.size()) - 1;
  for (size_t i = 0; i < passed; ++i) {
    Entry entry = std::move(queue.entries.front());
    queue.entries.pop_front();
    --queue.pushed;
    ++queue.base;
    objects_->Release(entry.key);
    if (entry.refused_by == 0) {
      for (const uint32_t number : queue.seats) ++context_->tallies[seats_.at(number).worker].folded;
      ++counted_.updates;
      counted_.digest += tb_mix(entry.key.lo);
      context_->reports->push_back({PoolReport::Kind::kFolded, options_.job, entry.update, ""});
    } else if (entry.refused_by == all) {
      context_->reports->push_back({PoolReport::Kind::kRefused, options_.job, entry.update, std::move(entry.reason)});
    } else {
      return Lose(fmt::format("update {}: refused by {} of {} workers and folded by the others ({})", ToHex(entry.update),
                              std::popcount(entry.refused_by), queue.seats.size(), entry.reason));
    }
  }
  if (passed == 0) return;
  const absl::Time now = context_->clock.Now();
  CountInHand(now);
  load_.OnFolded(now, static_cast<int64_t>(passed));
  Judge(queue, now);
  CountInHand(now);
}

bool PoolJob::Settle() {
  // Lose empties the map: look again each time.
  for (auto at = queues_.begin(); !lost_ && at != queues_.end(); ++at) {
    Complete(at->second);
    if (lost_) break;
    Pump(at->second);
    if (lost_) break;
  }
  return Arm();
}

bool PoolJob::HasSeat(uint32_t wire) const {
  return std::any_of(seats_.begin(), seats_.end(), [wire](const auto& item) { return item.second.wire == wire; });
}

void PoolJob::Hear(const SeatWiring::News& news) {
  const auto at = std::find_if(seats_.begin(), seats_.end(), [&](const auto& item) { return item.second.id.value() == news.id; });
  if (at == seats_.end() || !opened_) return;
  const Seat& seat = at->second;
  if (news.kind == SeatWiring::News::Kind::kOffender) {
    TRIB_LOG(warn, "job {}: worker {} sent other than records; it gets a new anchor", options_.job, seat.worker);
    return TellAnchor(seat);
  }
  // Its process is dead, and the replacement will replay the lanes from the start; or it runs, and is to look at them now.
  WorkerMessage message;
  message.kind = WorkerMessageKind::kReplay;
  message.job = seat.wire;
  context_->fleet->Tell(seat.worker, message);
}

absl::Status PoolJob::Hear(uint32_t worker, const WorkerMessage& message) {
  const auto at = std::find_if(seats_.begin(), seats_.end(), [&](const auto& item) { return item.second.wire == message.job; });
  if (at == seats_.end()) return absl::OkStatus();
  auto& [number, seat] = *at;
  if (seat.worker != worker) return InvalidArgument("a message about a seat in job {} that is another worker's", options_.job);
  switch (message.kind) {
    case WorkerMessageKind::kFailed:
      Lose(message.reason);
      return absl::OkStatus();
    case WorkerMessageKind::kRefused: {
      Queue& queue = queues_.at(seat.queue);
      const auto bit = std::find(queue.seats.begin(), queue.seats.end(), number) - queue.seats.begin();
      for (Entry& entry : queue.entries) {
        if (entry.key != ObjectKey{message.key_hi, message.key_lo}) continue;
        entry.refused_by |= uint64_t{1} << bit;
        entry.reason = message.reason;
        break;
      }
      return absl::OkStatus();
    }
    case WorkerMessageKind::kRoleTaken:
      OnRoleTaken(seat, message.epoch);
      return absl::OkStatus();
    case WorkerMessageKind::kComplete:
      OnComplete(number, message);
      return absl::OkStatus();
    case WorkerMessageKind::kMerged:
      // Repeated by a replacement, or of a lap that is over: not news.
      if (tree_ && message.lap == lap_ && tree_->may_merge(number, message.child)) {
        tree_->OnMerged(message.child);
        ++stats_.partials;
      }
      return absl::OkStatus();
    default:
      return InvalidArgument("kind {} is not for the daemon", static_cast<uint32_t>(message.kind));
  }
}

void PoolJob::AddWork(uint32_t worker, WorkerFleet::Owner::Work* work) const {
  for (const auto& [number, seat] : seats_) {
    if (seat.worker != worker) continue;
    const tb_slab_header& header = seat.slab.header();
    for (const uint64_t part : {uint64_t{header.completed_cursor}, uint64_t{header.blocks_done}, uint64_t{header.batch_size},
                                uint64_t{header.completed_batch}, uint64_t{header.published}, header.total.merged, uint64_t{seat.epoch_taken},
                                uint64_t{seat.complete}}) {
      work->stamp = tb_mix(work->stamp + part);
    }
    work->waiting = work->waiting || seat.done != seat.lane->pushed();
    if (!tree_ || seat.role_lap != lap_) continue;
    // A role it has not taken, a completion it has not told, or a partial it has not merged.
    const bool at_goal = tree_->may_complete(number) && seat.goal && seat.done - seat.lap_base == *seat.goal;
    const bool partials = std::any_of(edges_.begin(), edges_.end(), [&, to = number](const Edge& edge) {
      return edge.to == to && seats_.at(edge.from).complete && !tree_->merged(edge.node);
    });
    work->waiting = work->waiting || seat.epoch_taken != seat.epoch || at_goal || partials;
  }
}

LaneStats PoolJob::Lanes() const {
  LaneStats sum;
  for (const auto& [number, seat] : seats_) sum += ReadLaneStats(seat.lane_region.bytes);
  for (const Edge& edge : edges_) sum += ReadLaneStats(edge.region.bytes);
  return sum;
}

SeatRole PoolJob::RoleOf(uint32_t number, const Seat& seat) const {
  if (seat.role_lap != lap_) return SeatRole::kParked;
  return tree_ ? tree_->role(number) : seat.role;
}

bool PoolJob::Needs(uint32_t worker) const {
  return std::any_of(seats_.begin(), seats_.end(), [&](const auto& item) {
    const auto& [number, seat] = item;
    return seat.worker == worker && (RoleOf(number, seat) != SeatRole::kParked || !queues_.at(seat.queue).entries.empty());
  });
}

void PoolJob::Forget(uint32_t worker) {
  for (auto& [number, seat] : seats_) {
    // A lap that keeps its sums has a role for them.
    if (tree_ && seat.worker == worker && RoleOf(number, seat) == SeatRole::kParked) seat.slab.DropSums();
  }
}

void PoolJob::AddStatus(uint32_t worker, WorkerStatus* status, uint64_t* busy_ns, uint64_t* handled, SeatRole* role) const {
  for (const auto& [number, seat] : seats_) {
    if (seat.worker != worker) continue;
    SeatStatus here_status;
    here_status.job = options_.job;
    here_status.number = number;
    here_status.queued = static_cast<uint32_t>(queues_.at(seat.queue).entries.size());
    for (const Edge& edge : edges_) {
      if (edge.to == number && seats_.at(edge.from).complete && !tree_->merged(edge.node)) ++here_status.queued;
      if (edge.from == number && !tree_->merged(edge.node)) here_status.parent = edge.to;
    }
    status->queued += here_status.queued;
    *busy_ns += seat.slab.header().busy_ns;
    *handled += seat.slab.header().handled;
    const SeatRole here = RoleOf(number, seat);
    *role = std::max(*role, here);
    here_status.role = SeatRoleName(here);
    here_status.taken = seat.assigned;
    if (seat.goal) here_status.goal = *seat.goal;
    if (tree_ && here != SeatRole::kParked) {
      const uint64_t children = tree_->children(number);
      here_status.partials_goal = static_cast<uint32_t>(std::popcount(children));
      here_status.partials_taken = static_cast<uint32_t>(std::popcount(children & seat.slab.header().total.merged));
    }
    here_status.lane = ReadLaneStats(seat.lane_region.bytes);
    here_status.lane.pushed = seat.lane->pushed();
    status->seats.push_back(std::move(here_status));
  }
}

}  // namespace tributary::aggregator
