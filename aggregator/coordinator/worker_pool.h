// The daemon's side of the worker processes: starts them, gives each a range of the parameters ("range shard": every worker sees
// every update and owns a slice of the accumulators; no merge pass, the same bits for any number of workers), feeds their lanes,
// and replaces one that dies without losing or repeating a fold (the slab outlives it, see tb_slab_header).
//
// A worker that dies several times without any progress in between has met something that kills it; the job's sums are then lost.
//
// One thread inside watches lanes, channels and pidfds. Callbacks run on that thread: keep them short (post an event).
// Threads: public methods are safe from any thread. Errors: RESOURCE_EXHAUSTED when a slab does not fit; NOT_FOUND unknown job.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "aggregator/core/reducer.h"
#include "aggregator/core/server_step.h"
#include "aggregator/store/object_pool.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

struct WorkerStatus {
  uint32_t index = 0;
  int pid = 0;
  uint64_t folded = 0;
  uint32_t queued = 0;
  uint32_t restarts = 0;
};

class WorkerPool {
 public:
  static constexpr uint32_t kMaxWorkers = 64;
  struct Options {
    std::string worker_program;     // path of tributary-worker
    uint32_t workers = 1;           // 1 to kMaxWorkers
    uint32_t lane_capacity = 256;   // a power of two, <= TB_MAX_LANE_CAPACITY
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
  };
  // Makes slabs and lanes and tells the workers. `pool` must outlive the job here.
  absl::Status OpenJob(const JobOptions& options, ObjectPool* pool);
  void CloseJob(uint32_t job);

  // Empties the sums for `round` (first fold writes, no zeroing pass). Nothing may be in flight (FAILED_PRECONDITION).
  absl::Status BeginRound(uint32_t job, uint32_t round);
  // Queues a published object; takes over the caller's reference. Never blocks: what has no credit waits in a bounded queue
  // (the object pool bounds it). The object header's weight is what is applied.
  // FAILED_PRECONDITION before BeginRound or after `lost`, RESOURCE_EXHAUSTED beyond the pool's slots: the reference stays with
  // the caller then.
  absl::Status Fold(uint32_t job, const UpdateId& update, const ObjectKey& key);
  // The accumulators and counters of the open round. Only when everything queued has been reported folded or refused; the spans
  // are valid until BeginRound or CloseJob. FAILED_PRECONDITION also when nothing was folded in the round.
  struct Sums {
    std::vector<StatePiece> pieces;
    std::span<const int64_t> counters;
  };
  absl::StatusOr<Sums> ReadSums(uint32_t job);
  // Restores sums read earlier (a journalled partial): writes into fresh slabs. Call right after BeginRound.
  absl::Status WriteSums(uint32_t job, std::span<const std::byte> state, std::span<const int64_t> counters);

  std::vector<WorkerStatus> Status() const;

 private:
  struct Impl;
  explicit WorkerPool(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tributary::aggregator
