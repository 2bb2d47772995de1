// One job in the worker pool: the seats its workers have in it (a lane and a slab each, which outlive the process that works on
// them), the updates on their way through the lanes, and for a tree who merges whose partial (tree_state.h decides, this carries out).
//
// A lap is the life of the partials: BeginRound begins one, and so does the first update after sums were read, whose seat then keeps
// them and is the top of the next lap.
//
// Borrows the object pool and everything in PoolContext. Thread-compatible: the pool's lock guards it.
// Errors: as WorkerPool's methods of the same names.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregator/coordinator/pool_report.h"
#include "aggregator/coordinator/seat_wiring.h"
#include "aggregator/coordinator/tree_state.h"
#include "aggregator/coordinator/worker_fleet.h"
#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/reducer.h"
#include "aggregator/store/object_pool.h"
#include "aggregator/store/slab.h"
#include "aggregator/transport/transport.h"
#include "common/clock.h"

namespace tributary::aggregator {

// What a job shares with the pool and the other jobs.
struct PoolContext {
  uint32_t workers = 0;              // that are always there: 0 to workers - 1 of the fleet
  uint32_t lane_capacity = 0;
  BootClock clock;
  WorkerFleet* fleet = nullptr;
  SeatWiring* wiring = nullptr;
  std::vector<PoolReport>* reports = nullptr;
  std::map<uint32_t, WorkerTally> tallies;  // by worker
  LaneStats ended_lanes;
  std::map<uint32_t, uint32_t> seats;       // how many a worker has, of all jobs
  uint32_t next_wire = 1;
  uint16_t next_lane = 1;            // numbers of lanes between workers
};

class PoolJob {
 public:
  // INVALID_ARGUMENT, NOT_FOUND for options that cannot be served; RESOURCE_EXHAUSTED when slabs do not fit.
  static absl::StatusOr<std::unique_ptr<PoolJob>> Create(const WorkerPool::JobOptions& options, ObjectPool* objects,
                                                         PoolContext* context);
  static absl::StatusOr<size_t> SlabMemory(const WorkerPool::JobOptions& options);

  // Tells the workers of everything. Before it they are told of nothing but segments.
  void Open();
  // Tells the workers that it is over and releases what is under way.
  void Close();
  // A new process of this worker: tell it what its predecessor knew.
  void Greet(uint32_t worker);
  void OnSegment(uint16_t segment, int fd, size_t bytes);

  absl::Status BeginRound(uint32_t round, const RoundGoals& goals);
  absl::Status Replan(const WorkerPool::RoundPlanFunction& plan);
  void Hurry();
  absl::Status Fold(const UpdateId& update, const ObjectKey& key);
  // Reading: StartReading, wait until readable, ReadSums.
  absl::Status StartReading();
  bool readable() const { return lost_ || !tree_ || (tree_->closed() && tree_->done()); }
  absl::StatusOr<WorkerPool::Sums> ReadSums();
  absl::Status WriteSums(std::span<const std::byte> state, std::span<const int64_t> counters);

  // The turn of the pool's thread, in this order; channels are read between the two, as a refusal is sent before the cursor passes
  // its descriptor. Settle reports, pushes, and returns true if it is to be called again at once.
  void ReadCursors();
  bool Settle();
  bool under_way() const;
  // Asks for a doorbell at the next progress. True: there was some already, nobody will ring for it.
  bool Arm();

  bool HasSeat(uint32_t wire) const;
  // An error is the worker's fault.
  absl::Status Hear(uint32_t worker, const WorkerMessage& message);
  void Hear(const SeatWiring::News& news);  // of any job
  void Lose(std::string reason);
  bool lost() const { return lost_; }

  // Of one worker: changes with all it does here; is something queued for it.
  void AddWork(uint32_t worker, WorkerFleet::Owner::Work* work) const;
  void AddStatus(uint32_t worker, WorkerStatus* status, uint64_t* busy_ns, uint64_t* handled, SeatRole* role) const;
  // Whether the worker has a part in the open round that is not over. Otherwise its process may end: lanes, slabs and what it has sent
  // stay.
  bool Needs(uint32_t worker) const;
  // Its process has ended and is not needed: gives the memory of sums back that nobody wants any more.
  void Forget(uint32_t worker);
  LaneStats Lanes() const;  // of those there are
  std::optional<LoadEstimator::Estimate> Load();
  const WorkerPool::TreeStats& stats() const { return stats_; }
  ObjectPool* objects() const { return objects_; }

 private:
  struct Entry {
    UpdateId update;
    ObjectKey key;
    uint64_t refused_by = 0;  // a bit for each seat of the queue
    std::string reason;
    absl::Time arrived{};
  };
  // Updates on their way to some seats, one lane each. Every lane gets the same descriptors in the same order: entries[i] has lane
  // cursor base + i in all of them.
  struct Queue {
    std::vector<uint32_t> seats;
    std::deque<Entry> entries;
    size_t pushed = 0;  // entries[0, pushed) are in the lanes
    uint32_t base = 0;
    // What its seats' timing makes of it, as far as we can tell from here:
    bool resting = false;                              // entries wait because the timing wants them to,
    absl::Time rest_until = absl::InfiniteFuture();    // at most until then
    LastArrivalEstimator arrivals;
  };
  // One worker's part of the job.
  struct Seat {
    uint32_t worker = 0;
    bool own_worker = false;  // a process of its own, which ends with the seat
    uint32_t wire = 0;        // its number on the channel, never used again
    SeatId id;                // in the job's domain: the ends of descriptors
    SlabShape shape;
    SharedRegion lane_region, slab_region;
    std::unique_ptr<LaneProducer> lane;
    Slab slab;
    uint32_t done = 0;        // the lane's cursor as last read
    uint32_t queue = 0;
    // In this lap:
    uint32_t lap_base = 0;              // the lane's cursor at its beginning
    uint32_t assigned = 0;              // updates given to it
    std::optional<uint32_t> goal;       // updates it is to get
    // Its role, as told. epoch rises for ever.
    uint32_t epoch = 0, epoch_taken = 0;
    uint32_t role_lap = 0;
    SeatRole role = SeatRole::kParked;
    uint64_t children = 0;
    bool complete = false;              // under this epoch, as it says
    std::optional<absl::Time> promised; // a parent that has not taken its role: since when
  };
  // The way of one partial, in this lap.
  struct Edge {
    uint32_t node = 0;
    uint32_t from = 0, to = 0;  // seats
    uint16_t lane = 0;
    SharedRegion region;
  };
  struct Segment {
    uint16_t number = 0;
    int fd = -1;  // the object pool's
    size_t bytes = 0;
  };
  struct Counted {
    uint64_t updates = 0;
    uint64_t digest = 0;
    bool operator==(const Counted&) const = default;
  };

  PoolJob(const WorkerPool::JobOptions& options, ObjectPool* objects, PoolContext* context)
      : options_(options),
        objects_(objects),
        context_(context),
        timing_(MakeTimingPolicy(options.hierarchy.timing)),
        load_(options.hierarchy.load_window) {}

  // Seats.
  absl::Status MakeSeats();  // fresh lanes and slabs
  // `number`: of its lane. No worker: one of its own.
  absl::StatusOr<Seat> MakeSeat(uint32_t number, std::optional<uint32_t> worker, const SlabShape& shape);
  SlabShape WholeShape() const;
  void EndSeats();  // tells their workers; those of their own end
  void EndSeat(Seat& seat);
  void EndEdges();
  void ReleaseWorker(const Seat& seat);
  uint32_t ChooseWorker() const;
  void TellAnchor(const Seat& seat);
  void TellSegment(const Seat& seat, const Segment& segment);
  void TellSeat(uint32_t number);
  void TellRole(const Seat& seat);

  // Updates.
  void Enqueue(uint32_t queue, Entry entry);
  void Pump(Queue& queue);
  void Complete(Queue& queue);
  void ReleaseEntries();
  size_t queued_entries() const;
  absl::Status CheckOpen() const;  // FAILED_PRECONDITION before BeginRound or after Lose
  std::string CheckTotals(const Seat& seat) const;  // empty, or what is wrong

  // Load (pool_job_load.cc): whether the queue rests, after something about it changed; and what is in hand, of all queues.
  void Judge(Queue& queue, absl::Time now);
  void CountInHand(absl::Time now);
  uint32_t Depth(SeatRole role) const;

  // Laps and the tree (pool_job_tree.cc).
  void BeginLap(std::optional<uint32_t> holder);
  std::vector<std::optional<uint32_t>> LeafGoals(std::optional<uint32_t> holder) const;
  void SetRole(uint32_t number, SeatRole role, uint64_t children);
  void Execute(const std::vector<TreeAction>& actions);
  absl::Status StartSeat(uint32_t number);
  absl::Status Connect(uint32_t node, uint32_t from, uint32_t to);
  void TellChild(const Edge& edge);
  void TellParent(const Edge& edge);
  std::optional<uint32_t> ChooseSeat() const;
  void OnComplete(uint32_t number, const WorkerMessage& message);
  void OnRoleTaken(Seat& seat, uint32_t epoch);
  WorkerPool::RoundProgress Progress() const;
  absl::Status CheckGoals(const RoundGoals& goals, const WorkerPool::RoundProgress& progress) const;
  SeatRole RoleOf(uint32_t number, const Seat& seat) const;

  const WorkerPool::JobOptions options_;
  ObjectPool* const objects_;
  PoolContext* const context_;
  std::unique_ptr<Reducer> reducer_;
  bool opened_ = false;  // workers have been told
  bool lost_ = false;
  bool round_open_ = false;
  bool hurry_ = false;
  bool used_ = false;    // updates came since the seats were made
  uint32_t round_ = 0;
  uint32_t lap_ = 0;     // of all rounds
  uint32_t first_lap_ = 0;  // of the open round
  RoundGoals goals_;
  Counted counted_;      // in this round: folded, as reported
  std::unique_ptr<JobWiring> wiring_;  // before the seats, which it outlives
  std::map<uint32_t, Seat> seats_;
  std::vector<Seat> lost_seats_;
  std::vector<Segment> segments_;
  std::map<uint32_t, Queue> queues_;  // one for all seats, or in a tree one each, by seat
  std::unique_ptr<TreeState> tree_;
  std::vector<Edge> edges_;
  std::deque<Entry> waiting_;         // tree: beyond all goals, until there is a top
  WorkerPool::TreeStats stats_;
  const std::unique_ptr<TimingPolicy> timing_;
  LoadEstimator load_;
};

}  // namespace tributary::aggregator
