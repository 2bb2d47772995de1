// Laps, roles and partials of a job: carries out what TreeState decides. Contract: pool_job.h.
#include <algorithm>
#include <utility>

#include "aggregator/coordinator/pool_job.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kRoleSecondsKept = 64;

}  // namespace

// Equal shares of what is still to come, the larger ones first; nothing where a leaf takes no part, no number where none is known.
std::vector<std::optional<uint32_t>> PoolJob::LeafGoals(std::optional<uint32_t> holder) const {
  const uint32_t leaves = tree_->leaves();
  std::vector<std::optional<uint32_t>> goals(leaves);
  if (!goals_.leaves.empty() && counted_.updates == 0) {
    for (uint32_t i = 0; i < leaves; ++i) goals[i] = i < goals_.leaves.size() ? goals_.leaves[i] : 0;
    return goals;
  }
  uint64_t expected = goals_.updates;
  uint32_t planned = leaves;
  if (!goals_.leaves.empty()) {
    planned = static_cast<uint32_t>(goals_.leaves.size());
    expected = 0;
    for (const uint32_t goal : goals_.leaves) expected += goal;
  }
  if (expected <= counted_.updates) return goals;
  const uint64_t left = expected - counted_.updates;
  const auto takes_part = [&](uint32_t leaf) { return leaf < planned && holder != leaf; };
  uint64_t taking = 0;
  for (uint32_t i = 0; i < leaves; ++i) taking += takes_part(i) ? 1 : 0;
  uint64_t place = 0;
  for (uint32_t i = 0; i < leaves; ++i) {
    goals[i] = 0;
    if (!takes_part(i)) continue;
    goals[i] = static_cast<uint32_t>(left / taking + (place < left % taking ? 1 : 0));
    ++place;
  }
  return goals;
}

// The workers are at rest as far as this job goes. `holder`: its slab keeps its sums.
void PoolJob::BeginLap(std::optional<uint32_t> holder) {
  ++lap_;
  EndEdges();
  for (auto at = seats_.begin(); at != seats_.end();) {
    auto& [number, seat] = *at;
    // A parent started in an earlier lap, whose sums are in the holder's.
    if (tree_ && number >= tree_->leaves() && number != holder) {
      EndSeat(seat);
      queues_.erase(number);
      at = seats_.erase(at);
      continue;
    }
    seat.slab.BeginLap(round_, lap_, /*keep_sums=*/holder == number);
    seat.lap_base = seat.lane->pushed();
    seat.assigned = 0;
    seat.goal.reset();
    seat.role = SeatRole::kParked;
    seat.complete = false;
    seat.promised.reset();
    ++at;
  }
  const auto open_queues = [this] {
    const absl::Time now = context_->clock.Now();
    for (auto& [number, queue] : queues_) {
      queue.resting = false;
      queue.arrivals.OnRoundOpened(now, seats_.at(queue.seats.front()).goal.value_or(0));
    }
  };
  if (!tree_) {
    for (auto& [number, seat] : seats_) {
      if (goals_.updates > counted_.updates) seat.goal = static_cast<uint32_t>(goals_.updates - counted_.updates);
      SetRole(number, options_.hierarchy.shape == PoolShape::kFlat ? SeatRole::kTop : SeatRole::kRange, 0);
    }
    open_queues();
    return;
  }
  const std::vector<std::optional<uint32_t>> goals = LeafGoals(holder);
  std::vector<bool> used;
  for (uint32_t i = 0; i < tree_->leaves(); ++i) {
    seats_.at(i).goal = goals[i];
    used.push_back(!goals[i] || *goals[i] > 0);
  }
  // A plan of nothing but zeros is no plan: somebody has to take what comes.
  if (!holder && std::none_of(used.begin(), used.end(), [](bool u) { return u; })) {
    seats_.at(0).goal.reset();
    used[0] = true;
  }
  open_queues();
  Execute(tree_->Begin(used, holder));
}

// ---- roles ----

void PoolJob::SetRole(uint32_t number, SeatRole role, uint64_t children) {
  Seat& seat = seats_.at(number);
  ++seat.epoch;
  seat.role_lap = lap_;
  seat.role = role;
  seat.children = children;
  seat.complete = false;
  if (opened_) TellRole(seat);
}

void PoolJob::TellRole(const Seat& seat) {
  WorkerMessage message;
  message.kind = WorkerMessageKind::kRole;
  message.job = seat.wire;
  message.round = round_;
  message.lap = lap_;
  message.epoch = seat.epoch;
  message.role = static_cast<uint32_t>(seat.role);
  message.hurry = hurry_ ? 1 : 0;
  message.children = seat.children;
  message.depth = Depth(seat.role);
  // The top of a tree takes what is left over, to no goal.
  message.goal_known = seat.goal && !(tree_ && seat.role == SeatRole::kTop) ? 1 : 0;
  message.goal_cursor = seat.lap_base + seat.goal.value_or(0);
  context_->fleet->Tell(seat.worker, message);
}

void PoolJob::OnRoleTaken(Seat& seat, uint32_t epoch) {
  if (epoch > seat.epoch) return;  // nobody has told it that
  seat.epoch_taken = std::max(seat.epoch_taken, epoch);
  if (!seat.promised || seat.epoch_taken != seat.epoch) return;
  if (stats_.role_seconds.size() == kRoleSecondsKept) stats_.role_seconds.erase(stats_.role_seconds.begin());
  stats_.role_seconds.push_back(absl::ToDoubleSeconds(context_->clock.Now() - *seat.promised));
  seat.promised.reset();
}

void PoolJob::OnComplete(uint32_t number, const WorkerMessage& message) {
  Seat& seat = seats_.at(number);
  // Otherwise repeated by a replacement, overtaken by another role, or of a lap that is over.
  if (!tree_ || message.lap != lap_ || message.epoch != seat.epoch || seat.complete || !tree_->may_complete(number)) return;
  seat.complete = true;
  Execute(tree_->OnComplete(number, message.folded == 0));
}

void PoolJob::Execute(const std::vector<TreeAction>& actions) {
  const absl::Time now = context_->clock.Now();
  for (const TreeAction& action : actions) {
    absl::Status status;
    switch (action.kind) {
      case TreeAction::Kind::kStart:
        status = StartSeat(action.seat);
        break;
      case TreeAction::Kind::kRole: {
        Seat& seat = seats_.at(action.seat);
        const bool parent = action.role > SeatRole::kLeaf && action.role > seat.role;
        const bool in_place = parent && action.seat < tree_->leaves();
        if (parent && !seat.promised) seat.promised = now;
        if (in_place) ++stats_.promotions;
        SetRole(action.seat, action.role, action.children);
        break;
      }
      case TreeAction::Kind::kConnect:
        status = Connect(action.node, action.seat, action.parent);
        break;
    }
    if (!status.ok()) return Lose(fmt::format("the tree cannot go on: {}", MessageOf(status)));
  }
  const std::optional<uint32_t> top = tree_->top();
  while (!lost_ && top && !waiting_.empty()) {
    Entry entry = std::move(waiting_.front());
    waiting_.pop_front();
    Enqueue(*top, std::move(entry));
    if (waiting_.empty() && options_.hierarchy.timing.kind != TimingKind::kEager) Hurry();  // as in Fold
  }
}

absl::Status PoolJob::StartSeat(uint32_t number) {
  const absl::Time now = context_->clock.Now();
  TRIB_ASSIGN_OR_RETURN(Seat seat, MakeSeat(number, std::nullopt, WholeShape()));
  seat.queue = number;
  seat.slab.BeginLap(round_, lap_, /*keep_sums=*/false);
  seat.goal = 0;
  seat.promised = now;
  seats_[number] = std::move(seat);
  queues_[number].seats = {number};
  return absl::OkStatus();
}

// ---- partials ----

absl::Status PoolJob::Connect(uint32_t node, uint32_t from, uint32_t to) {
  Edge edge;
  edge.node = node;
  edge.from = from;
  edge.to = to;
  edge.lane = context_->next_lane++;
  constexpr uint32_t kCapacity = 2;  // one partial a lap
  TRIB_ASSIGN_OR_RETURN(edge.region, SharedRegion::Create("tributary-lane", LaneBytes(kCapacity)));
  TRIB_RETURN_IF_ERROR(FormatLane(edge.region.bytes, kCapacity));
  if (opened_) {
    TellChild(edge);
    TellParent(edge);
  }
  edges_.push_back(std::move(edge));
  return absl::OkStatus();
}

void PoolJob::TellChild(const Edge& edge) {
  const Seat& from = seats_.at(edge.from);
  const Seat& to = seats_.at(edge.to);
  const absl::StatusOr<UniqueFd> slab = from.slab_region.ReadOnlyFd();
  if (!slab.ok()) {  // out of descriptors; the parent is told again when it is replaced
    return context_->fleet->Kill(to.worker, slab.status());
  }
  WorkerMessage message;
  message.kind = WorkerMessageKind::kChild;
  message.job = to.wire;
  message.lap = lap_;
  message.child = edge.node;
  message.child_seat = from.wire;
  message.src = from.id.value();
  message.lane = edge.lane;
  message.lane_bytes = edge.region.bytes.size();
  message.slab_bytes = from.slab_region.bytes.size();
  context_->fleet->Tell(to.worker, message, {edge.region.fd.get(), slab->get()});
}

void PoolJob::TellParent(const Edge& edge) {
  const Seat& from = seats_.at(edge.from);
  const Seat& to = seats_.at(edge.to);
  WorkerMessage message;
  message.kind = WorkerMessageKind::kParent;
  message.job = from.wire;
  message.lap = lap_;
  message.lane = edge.lane;
  message.lane_bytes = edge.region.bytes.size();
  message.src = from.id.value();
  message.dst = to.id.value();
  context_->fleet->Tell(from.worker, message, {edge.region.fd.get(), context_->fleet->doorbell(to.worker)});
}

// The open leaf with the shortest queue, among those that have not been given all they are to get; beyond all goals, the top. Nobody:
// the update waits for a top.
std::optional<uint32_t> PoolJob::ChooseSeat() const {
  if (!tree_) return 0;
  std::optional<uint32_t> best;
  const auto load = [this](uint32_t seat) { return std::pair(queues_.at(seat).entries.size(), seats_.at(seat).assigned); };
  for (uint32_t i = 0; i < tree_->leaves(); ++i) {
    const Seat& seat = seats_.at(i);
    if (!tree_->open_leaf(i) || (seat.goal && seat.assigned >= *seat.goal)) continue;
    if (!best || load(i) < load(*best)) best = i;
  }
  return best ? best : tree_->top();
}

}  // namespace tributary::aggregator
