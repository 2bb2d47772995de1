// One job in the worker pool: the seats its workers have in it (a lane and a slab each, which outlive the process that works on
// them), and the updates on their way through the lanes.
//
// "Range shard": every seat owns a slice of the accumulators, all see every update; no merge pass, and the same bits for any number
// of workers.
//
// Borrows the object pool and everything in PoolContext. Thread-compatible: the pool's lock guards it.
// Errors: as WorkerPool's methods of the same names.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "aggregator/coordinator/pool_report.h"
#include "aggregator/coordinator/worker_fleet.h"
#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/reducer.h"
#include "aggregator/store/object_pool.h"
#include "aggregator/store/slab.h"
#include "aggregator/transport/transport.h"

namespace tributary::aggregator {

// What a job shares with the pool and the other jobs.
struct PoolContext {
  uint32_t workers = 0;
  uint32_t lane_capacity = 0;
  int progress_fd = -1;              // rung by the workers' lanes
  WorkerFleet* fleet = nullptr;
  std::vector<PoolReport>* reports = nullptr;
  std::vector<uint64_t>* folded = nullptr;  // updates, by worker
  uint32_t next_wire = 1;
};

class PoolJob {
 public:
  // INVALID_ARGUMENT, NOT_FOUND for a strategy that cannot be run; RESOURCE_EXHAUSTED when slabs do not fit.
  static absl::StatusOr<std::unique_ptr<PoolJob>> Create(const WorkerPool::JobOptions& options, ObjectPool* objects,
                                                         PoolContext* context);

  // Tells the workers of everything. Before it they are told of nothing but segments.
  void Open();
  // Tells the workers that it is over and releases what is under way.
  void Close();
  // A new process of this worker: tell it what its predecessor knew.
  void Greet(uint32_t worker);
  void OnSegment(uint16_t segment, int fd, size_t bytes);

  absl::Status BeginRound(uint32_t round);
  absl::Status Fold(const UpdateId& update, const ObjectKey& key);
  absl::StatusOr<WorkerPool::Sums> ReadSums();
  absl::Status WriteSums(std::span<const std::byte> state, std::span<const int64_t> counters);

  // The turn of the pool's thread, in this order; channels are read between the two, as a refusal is sent before the cursor passes
  // its descriptor. Settle reports, pushes, and returns true if it is to be called again at once.
  void ReadCursors();
  bool Settle();
  bool under_way() const { return !lost_ && queue_.pushed != 0; }
  // Asks for a doorbell at the next progress. True: there was some already, nobody will ring for it.
  bool Arm();

  bool HasSeat(uint32_t wire) const;
  absl::Status Hear(uint32_t worker, const WorkerMessage& message);
  void Lose(std::string reason);
  bool lost() const { return lost_; }

  // Of one worker: changes with all it does here; is something queued for it.
  void AddWork(uint32_t worker, WorkerFleet::Owner::Work* work) const;
  uint32_t queued(uint32_t worker) const;
  ObjectPool* objects() const { return objects_; }

 private:
  // One worker's part of the job.
  struct Seat {
    uint32_t worker = 0;
    uint32_t wire = 0;  // its number on the channel, never used again
    SlabShape shape;
    SharedRegion lane_region, slab_region;
    std::unique_ptr<LaneProducer> lane;
    Slab slab;
    uint32_t done = 0;  // the lane's cursor as last read
  };
  struct Entry {
    UpdateId update;
    ObjectKey key;
    uint64_t refused_by = 0;  // bit per seat
    std::string reason;
  };
  // Every lane gets the same descriptors in the same order: entries[i] has lane cursor base + i in all of them.
  struct Queue {
    std::deque<Entry> entries;
    size_t pushed = 0;  // entries[0, pushed) are in the lanes
    uint32_t base = 0;
  };
  struct Segment {
    uint16_t number = 0;
    int fd = -1;  // the object pool's
    size_t bytes = 0;
  };

  PoolJob(const WorkerPool::JobOptions& options, ObjectPool* objects, PoolContext* context)
      : options_(options), objects_(objects), context_(context) {}

  absl::Status MakeSeats();  // fresh lanes and slabs
  absl::StatusOr<Seat> MakeSeat(uint32_t worker, const SlabShape& shape);
  void TellSegment(const Seat& seat, const Segment& segment);
  void TellSeat(const Seat& seat);
  void TellClosed();
  void Pump();
  void Complete();
  void ReleaseEntries();
  absl::Status CheckOpen() const;  // FAILED_PRECONDITION before BeginRound or after Lose

  const WorkerPool::JobOptions options_;
  ObjectPool* const objects_;
  PoolContext* const context_;
  std::unique_ptr<Reducer> reducer_;
  bool opened_ = false;  // workers have been told
  bool lost_ = false;
  bool round_open_ = false;
  uint32_t round_ = 0;
  uint32_t lap_ = 0;  // of all rounds
  std::vector<Seat> seats_;
  std::vector<Seat> lost_seats_;
  std::vector<Segment> segments_;
  Queue queue_;
};

}  // namespace tributary::aggregator
