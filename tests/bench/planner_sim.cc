#include "tests/bench/planner_sim.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <queue>

#include "aggregator/core/planners/capacity.h"
#include "aggregator/core/planners/plan.h"
#include "aggregator/core/planners/scaling.h"
#include "aggregator/core/planners/timing.h"
#include "common/check.h"
#include "tests/bench/planner_roles.h"

namespace tributary::bench {
namespace {

using namespace aggregator;

struct Event {
  enum Kind { kArrival, kReady, kPassDone, kTimer, kPartial } kind = kArrival;
  absl::Time at{};
  uint64_t order = 0;  // equal times: first come, first served
  int32_t role = -1;
  uint64_t generation = 0;
  bool operator>(const Event& other) const { return at != other.at ? at > other.at : order > other.order; }
};

struct RoleRun {
  std::deque<absl::Time> queue{};            // arrivals, those in the pass included
  int64_t in_hand = 0;                       // as far as the node's estimate counts it
  int64_t folded = 0;
  int64_t in_pass = 0;
  bool ready = false;
  uint32_t worker = 0;
  uint64_t generation = 0;
};

struct WorkerRun {
  WorkerView view{};
  RoleState state{};
  absl::Time born{};
  std::optional<absl::Time> active_since{};
};

struct NodeRun {
  explicit NodeRun(const PlanSpec& plan) : load(LoadWindow(plan.period)), ewma(plan.weight, plan.on) {}
  LoadEstimator load;
  Ewma ewma;
  WarmPool pool;
  int64_t busy = 0;     // workers in a pass
  int64_t in_hand = 0;
};

class Simulation {
 public:
  explicit Simulation(const SimOptions& options)
      : options_(options), policy_(MakeTimingPolicy(options.hierarchy.timing)), now_(absl::UnixEpoch() + absl::Hours(1)), begin_(now_) {
    for (size_t i = 0; i < options.nodes; ++i) nodes_.emplace_back(options.hierarchy.plan);
  }

  SimResult Run(std::span<const ArrivalTrace> rounds) {
    for (const ArrivalTrace& trace : rounds) RunRound(trace);
    while (!workers_.empty()) Stop(workers_.begin()->first);
    result_.elapsed_s = absl::ToDoubleSeconds(now_ - begin_);
    result_.bytes_between_nodes = options_.costs.partial_bytes * static_cast<double>(result_.partials_between_nodes);
    return std::move(result_);
  }

 private:
  bool reuse() const { return options_.hierarchy.reuse; }

  void Push(Event::Kind kind, absl::Time at, int32_t role, uint64_t generation = 0) {
    events_.push({.kind = kind, .at = at, .order = order_++, .role = role, .generation = generation});
  }

  // ---- planning ----

  std::vector<NodeState> NodeStates() {
    const bool due = !last_plan_ || now_ >= *last_plan_ + options_.hierarchy.plan.period;
    std::vector<NodeState> states;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      NodeRun& node = nodes_[i];
      if (const auto estimate = due ? node.load.At(now_) : std::nullopt) node.ewma.Next(estimate->load);
      std::optional<double> load = node.ewma.value();
      if (!load && !options_.known_at_start) load = 1;
      states.push_back({.node = static_cast<uint32_t>(i), .residual = options_.capacity, .load = load, .cores = options_.cores, .quota = options_.cores});
    }
    if (due) {
      last_plan_ = now_;
      ++result_.replans;
    }
    replanned_ = due;
    return states;
  }

  void OpenRound(const ArrivalTrace& trace) {
    opened_ = now_;
    const std::vector<NodeState> states = NodeStates();
    PlanRequest request{.key = {.round = ++round_, .epoch = round_}, .updates = static_cast<int64_t>(trace.size()), .hierarchy = options_.hierarchy};
    request.nodes = states;
    auto plan = PlanRound(request);
    TRIB_CHECK(plan.ok(), "{}", plan.status().ToString());
    plan_ = *std::move(plan);
    progress_.assign(plan_.roles.size(), {});
    runs_.assign(plan_.roles.size(), {});
    router_ = std::make_unique<UpdateRouter>(plan_);
    last_arrival_.OnRoundOpened(now_, plan_.target);
    result_.leaves.push_back(plan_.leaves());
    result_.nodes_used.push_back(static_cast<int64_t>(plan_.nodes.size()));
    ApplyOrders(DiffPlan(plan_, progress_, Views(), reuse()));
    if (replanned_) EvictColdest();
    for (const double offset : trace) Push(Event::kArrival, opened_ + absl::Seconds(offset), -1);
    arrivals_left_ = plan_.target;
  }

  // Parked workers beyond what the last plans would have used.
  void EvictColdest() {
    for (uint32_t i = 0; i < nodes_.size(); ++i) {
      int64_t active = 0;
      std::vector<ParkedWorker> parked;
      for (const WorkerView& view : Views()) {
        if (view.node != i) continue;
        if (view.role == Role::kParked) {
          parked.push_back({.worker = view.worker, .since = view.parked_since});
        } else {
          ++active;
        }
      }
      nodes_[i].pool.OnPlan(active);
      const ScaleDecision scale = Scale({.wanted = active, .active = active, .parked = static_cast<int64_t>(parked.size()),
                                         .warm_target = reuse() ? nodes_[i].pool.Target(active, options_.cores) : 0, .quota = options_.cores});
      for (const uint32_t worker : Coldest(std::move(parked), scale.evict)) Stop(worker);
    }
  }

  std::vector<WorkerView> Views() const {
    std::vector<WorkerView> views;
    for (const auto& entry : workers_) views.push_back(entry.second.view);
    return views;
  }

  // ---- workers ----

  void ApplyOrders(const std::vector<RoleOrder>& orders) {
    for (const RoleOrder& order : orders) {
      switch (order.kind) {
        case RoleOrder::Kind::kStop:
          Stop(order.worker);
          break;
        case RoleOrder::Kind::kPark:
          Park(order.worker);
          break;
        case RoleOrder::Kind::kStart: {
          const uint32_t id = next_worker_++;
          workers_[id] = {.view = {.worker = id, .node = order.node}, .born = now_};
          ++result_.starts;
          Take(id, order.planned, options_.costs.cold_start_s);
          break;
        }
        case RoleOrder::Kind::kAssign:
          Take(order.worker, order.planned, options_.costs.warm_start_s);
          break;
        case RoleOrder::Kind::kKeep:
        case RoleOrder::Kind::kPromote:
          TRIB_CHECK(false, "a fresh round keeps and promotes nobody");
      }
    }
  }

  void Order(WorkerRun* worker, Role role, int32_t planned) {
    const auto changed = worker->state.Apply(plan_.key, role);
    TRIB_CHECK(changed.ok() && *changed, "worker {}: {}", worker->view.worker, changed.status().ToString());
    worker->view.role = role;
    worker->view.key = plan_.key;
    worker->view.planned = planned;
  }

  void Take(uint32_t id, int32_t role, double delay_s) {
    WorkerRun& worker = workers_.at(id);
    Order(&worker, plan_.roles[static_cast<size_t>(role)].role, role);
    if (!worker.active_since) worker.active_since = now_;
    ++progress_[static_cast<size_t>(role)].begun;
    runs_[static_cast<size_t>(role)].worker = id;
    if (progress_[static_cast<size_t>(role)].begun < plan_.roles[static_cast<size_t>(role)].shards) return;  // ready when all shards are
    Push(Event::kReady, now_ + absl::Seconds(delay_s), role);
  }

  void EndActive(WorkerRun* worker) {
    if (worker->active_since) result_.active_worker_s += absl::ToDoubleSeconds(now_ - *worker->active_since);
    worker->active_since.reset();
  }

  void Park(uint32_t id) {
    WorkerRun& worker = workers_.at(id);
    Order(&worker, Role::kParked, -1);
    worker.view.parked_since = now_;
    EndActive(&worker);
  }

  void Stop(uint32_t id) {
    WorkerRun& worker = workers_.at(id);
    EndActive(&worker);
    result_.alive_worker_s += absl::ToDoubleSeconds(now_ - worker.born);
    workers_.erase(id);
  }

  // ---- a round ----

  void RunRound(const ArrivalTrace& trace) {
    OpenRound(trace);
    reported_ = false;
    while (!reported_) {
      TRIB_CHECK(!events_.empty(), "round {} is stuck", round_);
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      Handle(event);
    }
    events_ = {};
    result_.round_s.push_back(absl::ToDoubleSeconds(now_ - opened_));
    result_.tail_s.push_back(absl::ToDoubleSeconds(now_ - last_came_));
  }

  void Handle(const Event& event) {
    switch (event.kind) {
      case Event::kArrival: {
        const std::optional<int32_t> leaf = router_->Next();
        TRIB_CHECK(leaf.has_value());
        last_came_ = now_;
        --arrivals_left_;
        last_arrival_.OnArrival(now_);
        ++progress_[static_cast<size_t>(*leaf)].inputs;
        Enqueue(*leaf);
        break;
      }
      case Event::kPartial:
        Enqueue(event.role);
        break;
      case Event::kReady:
        runs_[static_cast<size_t>(event.role)].ready = true;
        Poke(event.role);
        break;
      case Event::kTimer:
        if (runs_[static_cast<size_t>(event.role)].generation == event.generation) Poke(event.role);
        break;
      case Event::kPassDone:
        EndPass(event.role);
        break;
    }
  }

  void Enqueue(int32_t role) {
    runs_[static_cast<size_t>(role)].queue.push_back(now_);
    Poke(role);
  }

  // Tells the node's estimator what this leaf has in hand: all it has, unless it idles by policy.
  void CountInHand(int32_t role, bool idles) {
    const RoundPlan::PlannedRole& planned = plan_.roles[static_cast<size_t>(role)];
    if (planned.role != Role::kLeaf) return;
    RoleRun& run = runs_[static_cast<size_t>(role)];
    const int64_t all = options_.measured == MeasuredLoad::kInHand ? static_cast<int64_t>(run.queue.size()) : std::min<int64_t>(run.in_pass, 1);
    NodeRun& node = nodes_[planned.node];
    node.in_hand -= run.in_hand;
    run.in_hand = idles ? 0 : all;
    node.in_hand += run.in_hand;
    node.load.OnInHand(now_, node.in_hand);
  }

  int64_t DepthAbove(int32_t role) const {
    int64_t depth = 0;
    for (int32_t at = plan_.roles[static_cast<size_t>(role)].parent; at >= 0; at = plan_.roles[static_cast<size_t>(at)].parent) ++depth;
    return depth;
  }

  void Poke(int32_t role) {
    RoleRun& run = runs_[static_cast<size_t>(role)];
    if (!run.ready || run.in_pass > 0 || run.queue.empty()) {
      CountInHand(role, /*idles=*/false);
      return;
    }
    const RoundPlan::PlannedRole& planned = plan_.roles[static_cast<size_t>(role)];
    const bool leaf = planned.role == Role::kLeaf;
    TimingInput input{.now = now_, .queued = static_cast<int64_t>(run.queue.size()), .folded = run.folded, .goal = planned.goal,
                      .oldest = run.queue.front(), .predicted_last = last_arrival_.Predict(now_),
                      .update_time = absl::Seconds(leaf ? options_.costs.fold_s : options_.costs.merge_s),
                      .merge_time = absl::Seconds(options_.costs.merge_s), .depth = DepthAbove(role)};
    const TimingDecision decision = policy_->Decide(input);
    ++run.generation;
    if (decision.fold > 0) {
      BeginPass(role, std::min(decision.fold, options_.costs.max_pass));
      CountInHand(role, /*idles=*/false);
      return;
    }
    CountInHand(role, /*idles=*/true);
    if (decision.wait_until != absl::InfiniteFuture()) Push(Event::kTimer, decision.wait_until, role, run.generation);
  }

  void BeginPass(int32_t role, int64_t count) {
    RoleRun& run = runs_[static_cast<size_t>(role)];
    const RoundPlan::PlannedRole& planned = plan_.roles[static_cast<size_t>(role)];
    run.in_pass = count;
    NodeRun& node = nodes_[planned.node];
    node.busy += planned.shards;
    const double slow = std::max(1.0, static_cast<double>(node.busy) / options_.costs.workers_fed);
    const double first = planned.role == Role::kLeaf ? options_.costs.fold_s : options_.costs.merge_s;
    const double seconds = slow * first * (1 + options_.costs.batch_part * static_cast<double>(count - 1)) / static_cast<double>(planned.shards);
    result_.busy_worker_s += seconds * static_cast<double>(planned.shards);
    ++result_.passes;
    Push(Event::kPassDone, now_ + absl::Seconds(seconds), role);
  }

  void EndPass(int32_t role) {
    RoleRun& run = runs_[static_cast<size_t>(role)];
    const RoundPlan::PlannedRole& planned = plan_.roles[static_cast<size_t>(role)];
    NodeRun& node = nodes_[planned.node];
    node.busy -= planned.shards;
    run.queue.erase(run.queue.begin(), run.queue.begin() + run.in_pass);
    if (planned.role == Role::kLeaf) node.load.OnFolded(now_, run.in_pass);
    run.folded += run.in_pass;
    run.in_pass = 0;
    CountInHand(role, /*idles=*/false);
    run.folded == planned.goal ? Finish(role) : Poke(role);
  }

  void Finish(int32_t role) {
    progress_[static_cast<size_t>(role)].finished = true;
    const NextStep step = AfterFinish(plan_, progress_, role, reuse());
    if (step.kind == NextStep::Kind::kReport) {
      reported_ = true;
      TRIB_CHECK(arrivals_left_ == 0);
      if (!reuse()) StopAllOf(role);
      return;
    }
    const RoundPlan::PlannedRole& parent = plan_.roles[static_cast<size_t>(step.parent)];
    ++progress_[static_cast<size_t>(step.parent)].inputs;
    if (step.kind == NextStep::Kind::kPromote) {
      runs_[static_cast<size_t>(step.parent)].folded = 1;  // its own partial is the parent's first input, uncopied
      for (const uint32_t worker : WorkersOf(role)) Take(worker, step.parent, options_.costs.warm_start_s);
      if (parent.goal == 1) Finish(step.parent);
      return;
    }
    const bool crosses = parent.node != plan_.roles[static_cast<size_t>(role)].node;
    result_.partials_between_nodes += crosses;
    Push(Event::kPartial, now_ + absl::Seconds(crosses ? options_.costs.network_s : 0), step.parent);
    for (const uint32_t worker : WorkersOf(role)) reuse() ? Park(worker) : Stop(worker);
  }

  std::vector<uint32_t> WorkersOf(int32_t role) const {
    std::vector<uint32_t> ids;
    for (const auto& entry : workers_) {
      if (entry.second.view.planned == role && entry.second.view.key == plan_.key) ids.push_back(entry.first);
    }
    return ids;
  }
  void StopAllOf(int32_t role) {
    for (const uint32_t worker : WorkersOf(role)) Stop(worker);
  }

  const SimOptions options_;
  const std::unique_ptr<TimingPolicy> policy_;
  absl::Time now_;
  const absl::Time begin_;
  std::vector<NodeRun> nodes_;
  std::map<uint32_t, WorkerRun> workers_;
  uint32_t next_worker_ = 1;
  std::optional<absl::Time> last_plan_;
  bool replanned_ = false;
  uint64_t round_ = 0;
  RoundPlan plan_;
  std::vector<RoleProgress> progress_;
  std::vector<RoleRun> runs_;
  std::unique_ptr<UpdateRouter> router_;
  LastArrivalEstimator last_arrival_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t order_ = 0;
  absl::Time opened_, last_came_;
  int64_t arrivals_left_ = 0;
  bool reported_ = false;
  SimResult result_;
};

}  // namespace

SimResult Simulate(const SimOptions& options, std::span<const ArrivalTrace> rounds) { return Simulation(options).Run(rounds); }

}  // namespace tributary::bench
