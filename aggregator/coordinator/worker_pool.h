// The daemon's side of the worker processes: starts them, gives each its seat in a job, feeds their lanes, and replaces one that dies
// without losing or repeating a fold (the slab outlives it, see tb_slab_header). A job has one of three shapes (dataplane.md §7.2):
//
//   flat   one worker folds everything
//   shard  every worker sees every update and owns a slice of the accumulators; no merge pass, the same bits for any number of workers
//   tree   each leaf folds the updates given to it; the first that is complete is promoted and merges the others' partials, which it
//          reads where they are. In reproducible mode the same bits as the others; in fp64 sums differ by rounding
//
// Which updates are in a partial, their number and weights are the caller's books as in the other shapes: `folded` says that an update
// is in the slab of its leaf, which nothing but the daemon's end can take away.
//
// `workers` is a bound: a process is started when a round's plan needs it and it is not there. Those that no plan needs are parked, with
// their memory; what the plans of the last periods could have done without is ended, coldest first (pool_scaler.h).
//
// A worker that dies several times without any progress in between has met something that kills it; the job's sums are then lost.
//
// One thread inside watches lanes, channels and pidfds. Callbacks run on that thread: keep them short (post an event).
// Threads: public methods are safe from any thread. Errors: RESOURCE_EXHAUSTED when a slab does not fit; NOT_FOUND unknown job.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "aggregator/core/planners/capacity.h"
#include "aggregator/core/planners/timing.h"
#include "aggregator/core/reducer.h"
#include "aggregator/core/server_step.h"
#include "aggregator/store/object_pool.h"
#include "aggregator/transport/transport.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "ebpf/verdict_program.h"

namespace tributary::aggregator {

// One worker's part in one job.
struct SeatStatus {
  uint32_t job = 0;
  std::string role;                // parked | range | leaf | middle | top
  uint32_t queued = 0;             // updates and partials
  uint64_t taken = 0;              // updates given to it in this lap
  std::optional<uint64_t> goal;    // that it is to get
  uint32_t partials_taken = 0, partials_goal = 0;
  uint32_t number = 0;             // within its job
  std::optional<uint32_t> parent;  // number of the seat that its partial goes to
  LaneStats lane;                  // of its updates, since it was made
};

struct WorkerStatus {
  uint32_t index = 0;
  int pid = 0;
  uint64_t folded = 0;
  uint32_t queued = 0;      // updates and partials
  uint32_t restarts = 0;
  std::string role;         // cold | parked | range | leaf | middle | top: the highest, of all jobs. cold: there is no process
  absl::Duration parked_for;  // parked: since when
  double seconds_per_update = 0;   // E: mean time to fold an update or merge a partial; 0: none yet
  double updates_per_second = 0;   // k: arrivals, over about ten seconds
  std::vector<SeatStatus> seats;   // by job
};

enum class PoolShape { kFlat, kShard, kTree };

// How a job's updates become one sum inside this node.
struct PoolHierarchy {
  PoolShape shape = PoolShape::kShard;
  uint32_t shards = 0;        // shard: ranges at most; 0: one for each worker
  uint32_t leaves = 2;        // tree: 1 to 32. More than there are workers: they share
  uint32_t fan_in = 0;        // tree: leaves to a middle, >= 2; 0: no middles, all partials go to the top
  bool reuse = true;          // tree: promote in place; false: a fresh process and slab for every role of every round
  TimingSpec timing{.kind = TimingKind::kEager};  // when a seat folds what is queued for it (core/planners/timing.h)
  uint32_t max_fold = 8;      // updates in one pass over the accumulators, 1 to TB_MAX_BATCH
  absl::Duration load_window = absl::Seconds(30);  // of LoadOf, > 0
};

// How many models' sums such a job keeps at one time: 1 for flat and shard, one a leaf for a tree, and without reuse one a parent too.
uint32_t SlabCount(const PoolHierarchy& hierarchy);

// What is expected of a round. Goals decide when a leaf is complete and what lazy folding waits for; they are no limits: an update too
// many goes to the top.
struct RoundGoals {
  uint64_t updates = 0;          // in all; 0: not known
  std::vector<uint32_t> leaves;  // tree: of each leaf (fewer entries: the others take no part); empty: equal shares
};

class WorkerPool {
 public:
  static constexpr uint32_t kMaxWorkers = 64;
  struct Options {
    std::string worker_program;     // path of tributary-worker
    uint32_t workers = 1;           // 1 to kMaxWorkers
    uint32_t lane_capacity = 256;   // a power of two, <= TB_MAX_LANE_CAPACITY; `skmsg-inline` takes less (skmsg_endpoint.h)
    TransportKind transport = TransportKind::kRing;  // as ChooseTransport says (probe.h): nothing is probed here
    std::filesystem::path pin_folder = {};  // of the verdict program (ebpf/verdict_program.h); empty: nothing is pinned
    absl::Duration scale_period = absl::Seconds(30);  // > 0: between decisions on which parked processes stay (pool_scaler.h)
    absl::Duration hang_patience = absl::Seconds(10);  // how long a worker with work may neither get on nor answer (worker_watchdog.h)
  };
  struct Callbacks {
    // Every worker has folded the object; it was released from the pool already.
    std::function<void(uint32_t job, const UpdateId& update)> folded;
    // Not in the sums of any worker.
    std::function<void(uint32_t job, const UpdateId& update, const std::string& reason)> refused;
    // The sums of the open round cannot be trusted any more: what was folded or queued in it is not counted, objects still queued
    // are released, and no `folded` or `refused` comes for them. Only BeginRound (or CloseJob) goes on.
    std::function<void(uint32_t job, const std::string& reason)> lost;
  };
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Start(const Options& options, Callbacks callbacks);
  ~WorkerPool();  // stops the workers

  struct JobOptions {
    uint32_t job = 0;
    std::string strategy;
    TensorLayout layout;
    Arithmetic arithmetic = Arithmetic::kFloat64;
    Codec codec = Codec::kPlain;  // of the objects; `kept` of topk
    uint64_t kept = 0;
    PoolHierarchy hierarchy = {};
  };
  // Makes slabs and lanes and tells the workers. `pool` must outlive the job here. INVALID_ARGUMENT for a hierarchy that cannot be,
  // and for a tree with a strategy that needs all updates at once.
  absl::Status OpenJob(const JobOptions& options, ObjectPool* pool);
  void CloseJob(uint32_t job);
  // Memory of the job's slabs in use at one time, to be counted against the pool budget: SlabCount times a model's.
  static absl::StatusOr<size_t> SlabMemory(const JobOptions& options);

  // Empties the sums for `round` (first fold writes, no zeroing pass). Nothing may be in flight (FAILED_PRECONDITION).
  absl::Status BeginRound(uint32_t job, uint32_t round, const RoundGoals& goals = {});
  // A new plan in the middle of a round. `plan` is told how far the leaves are and answers with goals for all of them (`updates` is not
  // looked at); meanwhile nothing moves, so keep it short. A leaf may get more or fewer updates than it was to get, but not fewer than it
  // has, and no more once it has all; one that takes no part may be given one, and one that has nothing may lose it.
  // FAILED_PRECONDITION where there is nothing to plan anew: no tree, no open round, or one whose sums were read already.
  struct LeafProgress {
    uint64_t taken = 0;
    bool open = false;  // it is to get more
    bool free = false;  // it takes no part, and may
  };
  struct RoundProgress {
    std::vector<LeafProgress> leaves;  // all that the job has memory for
    bool top = false;                  // somebody merges partials
  };
  using RoundPlanFunction = std::function<absl::StatusOr<RoundGoals>(const RoundProgress&)>;
  absl::Status Replan(uint32_t job, const RoundPlanFunction& plan);
  // For the rest of the round nothing waits for more to come: the deadline has passed, the sums will be wanted.
  void Hurry(uint32_t job);
  // Queues a published object; takes over the caller's reference. Never blocks: what has no credit waits in a bounded queue
  // (the object pool bounds it). The object header's weight is what is applied.
  // FAILED_PRECONDITION before BeginRound or after `lost`, RESOURCE_EXHAUSTED beyond the pool's slots: the reference stays with
  // the caller then.
  absl::Status Fold(uint32_t job, const UpdateId& update, const ObjectKey& key);
  // The accumulators and counters of the open round. Only when everything queued has been reported folded or refused; the spans
  // are valid until Fold, BeginRound or CloseJob. FAILED_PRECONDITION also when nothing was folded in the round.
  // Of a tree: closes every leaf at what it has, and waits until all partials are merged (workers that die meanwhile are replaced).
  struct Sums {
    std::vector<StatePiece> pieces;
    std::span<const int64_t> counters;
  };
  absl::StatusOr<Sums> ReadSums(uint32_t job);
  // Restores sums read earlier (a journalled partial): writes into fresh slabs. Call right after BeginRound.
  absl::Status WriteSums(uint32_t job, std::span<const std::byte> state, std::span<const int64_t> counters);

  std::vector<WorkerStatus> Status() const;
  // Of the workers that are always there (not of those started for a role), since Start.
  struct ScaleStats {
    uint64_t starts = 0;     // of processes that a plan needed
    uint64_t evictions = 0;  // of parked ones that no plan needed for long
  };
  ScaleStats Scaling() const;
  // Of all lanes since Start, those of partials and those that are over included; and what the verdict program counted (nullopt with
  // `ring`). Each record that a lane's end sends is one doorbell or credit here and one verdict there.
  struct Traffic {
    LaneStats lanes;
    std::optional<ebpf::VerdictCounts> verdicts;
  };
  Traffic TrafficOf() const;
  // What the job's updates have cost lately: the planner's k, E and Q. nullopt: nothing was folded in the window.
  absl::StatusOr<std::optional<LoadEstimator::Estimate>> LoadOf(uint32_t job);
  double MeanLoad();  // k·E of all jobs, rests included: what is in hand on this node on average
  // Of a job's tree, since OpenJob.
  struct TreeStats {
    uint64_t promotions = 0;           // roles taken over in place
    uint64_t starts = 0;               // processes started for a role
    uint64_t partials = 0;             // merged
    std::vector<double> role_seconds;  // decision to role taken, of the last parents (at most 64)
  };
  absl::StatusOr<TreeStats> StatsOf(uint32_t job) const;

 private:
  struct Impl;
  explicit WorkerPool(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tributary::aggregator
