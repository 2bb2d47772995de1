#include "tests/bench/planner_roles.h"

#include <algorithm>

#include "common/check.h"

namespace tributary::bench {
namespace {

// How far along its key's life a role is: parked comes last, not first.
int StageOf(Role role) { return role == Role::kParked ? 4 : static_cast<int>(role); }

class Differ {
 public:
  Differ(const RoundPlan& plan, std::span<const RoleProgress> progress, std::span<const WorkerView> workers, bool reuse)
      : plan_(plan), progress_(progress), workers_(workers), reuse_(reuse), filled_(plan.roles.size(), 0), used_(workers.size(), false) {
    TRIB_CHECK(progress.size() == plan.roles.size(), "{} roles, progress of {}", plan.roles.size(), progress.size());
  }

  std::vector<RoleOrder> Orders() {
    KeepWhoIsThere();
    if (reuse_) PromoteWhoFinished();
    for (size_t role = 0; role < plan_.roles.size(); ++role) {
      while (Wants(role)) Staff(role);
    }
    std::stable_sort(orders_.begin(), orders_.end(), [](const RoleOrder& a, const RoleOrder& b) { return a.planned < b.planned; });
    ReleaseTheRest();
    return std::move(orders_);
  }

 private:
  const RoundPlan::PlannedRole& At(size_t role) const { return plan_.roles[role]; }
  void Order(RoleOrder::Kind kind, uint32_t worker, size_t role) {
    orders_.push_back({.kind = kind, .worker = worker, .node = At(role).node, .role = At(role).role, .planned = static_cast<int32_t>(role)});
    ++filled_[role];
  }

  // The role of this plan that a worker fills already: by an order of this plan, or in the plan of this round that it continues.
  int32_t Filled(const WorkerView& worker) const {
    if (worker.role == Role::kParked || worker.planned < 0 || !worker.key) return -1;
    if (worker.key == plan_.key) return worker.planned < static_cast<int32_t>(plan_.roles.size()) ? worker.planned : -1;
    if (worker.key->round != plan_.key.round || worker.key->epoch > plan_.key.epoch) return -1;
    for (size_t role = 0; role < plan_.roles.size(); ++role) {
      if (At(role).continues == worker.planned) return static_cast<int32_t>(role);
    }
    return -1;
  }

  void KeepWhoIsThere() {
    for (size_t i = 0; i < workers_.size(); ++i) {
      const int32_t role = Filled(workers_[i]);
      if (role < 0) continue;
      const size_t at = static_cast<size_t>(role);
      const bool fits = At(at).node == workers_[i].node && At(at).role == workers_[i].role && !progress_[at].finished;
      if (!fits || filled_[at] == At(at).shards) continue;
      used_[i] = true;
      Order(RoleOrder::Kind::kKeep, workers_[i].worker, at);
    }
  }

  void PromoteWhoFinished() {
    for (size_t i = 0; i < workers_.size(); ++i) {
      const int32_t role = used_[i] ? -1 : Filled(workers_[i]);
      if (role < 0 || !progress_[static_cast<size_t>(role)].finished || At(static_cast<size_t>(role)).role != workers_[i].role) continue;
      const NextStep step = AfterFinish(plan_, progress_, role, reuse_);
      if (step.kind != NextStep::Kind::kPromote || filled_[static_cast<size_t>(step.parent)] == At(static_cast<size_t>(step.parent)).shards) continue;
      used_[i] = true;
      Order(RoleOrder::Kind::kPromote, workers_[i].worker, static_cast<size_t>(step.parent));
    }
  }

  bool Wants(size_t role) const {
    if (progress_[role].finished) return false;
    const bool waits = reuse_ && At(role).role != Role::kLeaf && MayRise(role);
    // While somebody may still rise, only the dead are replaced.
    return filled_[role] < (waits ? std::min(progress_[role].begun, At(role).shards) : At(role).shards);
  }
  bool MayRise(size_t role) const {
    if (progress_[role].begun >= At(role).shards) return false;
    for (size_t child = 0; child < plan_.roles.size(); ++child) {
      if (At(child).parent != static_cast<int32_t>(role) || At(child).node != At(role).node || progress_[child].finished) continue;
      return true;  // a leaf is always staffed, a middle staffed or to be risen to
    }
    return false;
  }

  void Staff(size_t role) {
    size_t best = workers_.size();
    for (size_t i = 0; reuse_ && i < workers_.size(); ++i) {
      if (used_[i] || workers_[i].node != At(role).node || !IsFree(workers_[i])) continue;
      if (best == workers_.size() || Warmer(workers_[i], workers_[best])) best = i;
    }
    if (best == workers_.size()) {
      Order(RoleOrder::Kind::kStart, 0, role);
      return;
    }
    used_[best] = true;
    Order(RoleOrder::Kind::kAssign, workers_[best].worker, role);
  }
  // Parked by an older plan, or in a role of a round that is over.
  bool IsFree(const WorkerView& worker) const {
    return !worker.key || worker.key->round < plan_.key.round || (worker.role == Role::kParked && *worker.key < plan_.key);
  }
  static bool Warmer(const WorkerView& a, const WorkerView& b) {
    const bool a_parked = a.role == Role::kParked;
    const bool b_parked = b.role == Role::kParked;
    if (a_parked != b_parked) return b_parked;
    if (a_parked && a.parked_since != b.parked_since) return a.parked_since > b.parked_since;
    return a.worker < b.worker;
  }

  void ReleaseTheRest() {
    for (size_t i = 0; i < workers_.size(); ++i) {
      if (used_[i]) continue;
      if (reuse_ && workers_[i].role == Role::kParked) continue;
      orders_.push_back({.kind = reuse_ ? RoleOrder::Kind::kPark : RoleOrder::Kind::kStop, .worker = workers_[i].worker, .node = workers_[i].node});
    }
  }

  const RoundPlan& plan_;
  std::span<const RoleProgress> progress_;
  std::span<const WorkerView> workers_;
  const bool reuse_;
  std::vector<int64_t> filled_;  // workers a role has
  std::vector<bool> used_;
  std::vector<RoleOrder> orders_;
};

}  // namespace

absl::StatusOr<bool> RoleState::Apply(PlanKey key, Role to) {
  if (key_ && key < *key_) {
    return FailedPrecondition("order '{}' of round {}, epoch {}: expected none older than round {}, epoch {}", RoleName(to), key.round,
                              key.epoch, key_->round, key_->epoch);
  }
  if (key_ && key == *key_ && StageOf(to) <= StageOf(role_)) return false;
  const bool holds_partials = role_ == Role::kMiddle || role_ == Role::kTop;
  if (key_ && key.round == key_->round && holds_partials && StageOf(to) < StageOf(role_)) {
    return FailedPrecondition("order '{}' of round {}, epoch {}: the worker is {} of that round and holds partials; expected {} or later",
                              RoleName(to), key.round, key.epoch, RoleName(role_), RoleName(role_));
  }
  role_ = to;
  key_ = key;
  return true;
}

std::vector<RoleOrder> DiffPlan(const RoundPlan& plan, std::span<const RoleProgress> progress, std::span<const WorkerView> workers, bool reuse) {
  return Differ(plan, progress, workers, reuse).Orders();
}

NextStep AfterFinish(const RoundPlan& plan, std::span<const RoleProgress> progress, int32_t role, bool reuse) {
  TRIB_CHECK(role >= 0 && static_cast<size_t>(role) < plan.roles.size() && progress.size() == plan.roles.size());
  const RoundPlan::PlannedRole& finished = plan.roles[static_cast<size_t>(role)];
  if (finished.parent < 0) return {.kind = NextStep::Kind::kReport};
  const size_t parent = static_cast<size_t>(finished.parent);
  const bool free = progress[parent].begun < plan.roles[parent].shards;
  const bool rises = reuse && free && plan.roles[parent].node == finished.node && plan.roles[parent].shards == finished.shards;
  return {.kind = rises ? NextStep::Kind::kPromote : NextStep::Kind::kSend, .parent = finished.parent};
}

UpdateRouter::UpdateRouter(const RoundPlan& plan) : route_(plan.route) {
  for (const RoundPlan::PlannedRole& role : plan.roles) next_ += static_cast<size_t>(role.taken);
}

std::optional<int32_t> UpdateRouter::Next() {
  if (!returned_.empty()) {
    const int32_t role = returned_.back();
    returned_.pop_back();
    return role;
  }
  if (next_ == route_.size()) return std::nullopt;
  return route_[next_++];
}

}  // namespace tributary::bench
