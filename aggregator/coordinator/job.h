// One job inside the coordinator: its row, and while it is open its runtime (engine, strategy, object pool, current model) with the
// books of clients' tasks and updates that the engine does not keep.
//
// Memory of an open job: current model, room for the next one, and out of the daemon's pool budget the workers' slabs and
// the object pool.
// Threads: everything is guarded by the coordinator's mutex, except what is marked otherwise. Runtime is shared so that an RPC
// thread can use the object pool without the mutex while the job ends.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "aggregator/coordinator/api.h"
#include "aggregator/coordinator/capacity_book.h"
#include "aggregator/coordinator/relay.h"
#include "aggregator/coordinator/round_planner.h"
#include "aggregator/coordinator/worker_pool.h"
#include "aggregator/core/moe_state.h"
#include "aggregator/core/privacy/job_privacy.h"
#include "aggregator/core/round.h"
#include "aggregator/core/server_step.h"
#include "aggregator/core/strategy.h"
#include "aggregator/store/memfd.h"
#include "aggregator/store/object_pool.h"
#include "common/ids.h"
#include "common/job_spec.h"
#include "common/live_triplets.h"
#include "common/tensor_layout.h"
#include "tributary/v1/store.pb.h"

namespace tributary::aggregator {

inline constexpr size_t kMaxTimings = 100;
inline constexpr size_t kMaxCommitsForRate = 10;

// One model version in flat form. Immutable once shared; shared because fetchers may still read it after the next one came.
// It lies in a sealed memfd, so that clients of this host can map it.
class ModelBuffer {
 public:
  // The memory of the last buffer that is gone, used for the next one if no client has it mapped by then: getting and clearing pages
  // takes as long as the server step. Threads: safe.
  class Shelf {
   public:
    explicit Shelf(size_t bytes) : bytes_(bytes) {}
    ~Shelf();
    Shelf(const Shelf&) = delete;
    Shelf& operator=(const Shelf&) = delete;

   private:
    friend class ModelBuffer;
    absl::StatusOr<MappedMemfd> Take();
    void PutBack(MappedMemfd memory);
    const size_t bytes_;
    absl::Mutex mutex_;
    MappedMemfd memory_ ABSL_GUARDED_BY(mutex_);
  };

  // RESOURCE_EXHAUSTED when there are no pages for it. The content is undefined.
  static absl::StatusOr<std::shared_ptr<ModelBuffer>> Make(std::shared_ptr<Shelf> shelf);
  ~ModelBuffer();
  ModelBuffer(const ModelBuffer&) = delete;
  ModelBuffer& operator=(const ModelBuffer&) = delete;
  std::span<std::byte> writable() { return memory_.bytes; }  // until it is shared
  std::span<const std::byte> bytes() const { return memory_.bytes; }
  // Once the bytes are final and before they are shared; `sha256` in hex.
  void Seal(uint64_t version, std::string sha256);
  // The same on a thread of its own, which finds the hash too: hashing takes as long as writing the version to the store. Nothing else may
  // be asked of the buffer before the future is ready; the last copy of the future waits for the thread.
  static std::shared_future<std::string> SealMeanwhile(std::shared_ptr<ModelBuffer> model, uint64_t version);
  uint64_t version() const { return version_; }
  const std::string& sha256() const { return sha256_; }
  SharedBytes Share(std::shared_ptr<const ModelBuffer> self) const;

 private:
  ModelBuffer(std::shared_ptr<Shelf> shelf, MappedMemfd memory) : shelf_(std::move(shelf)), memory_(std::move(memory)) {}
  const std::shared_ptr<Shelf> shelf_;  // shared: buffers outlive their job while somebody reads them
  MappedMemfd memory_;
  uint64_t version_ = 0;
  std::string sha256_;
  std::string xxh3_128_;
};
using ModelRef = std::shared_ptr<const ModelBuffer>;

// What the coordinator knows of an update that is not in a version yet, or was refused. Counted ones live in the store.
struct UpdateEntry {
  UpdateKeyRef key;
  std::string digest;        // xxh3-128 of its bytes, 16 bytes
  v1::UpdateState state = v1::UPDATE_STATE_PARTIAL;
  std::string reason;
  uint64_t base_version = 0;
  double weight = 0;         // effective, once folded
  double clip_factor = 1;    // what the server clipped it by
  uint64_t examples = 0;
  double claimed = 0;        // weight as the client sent it
  Scalars scalars;
  MoeStats moe;
  std::optional<ObjectKey> whole;  // of a strategy that keeps updates until the commit: where it lies
  bool folded = false;       // by every worker, in the open aggregate
  bool committing = false;   // in the commit under way
  std::string node;          // whose partial brought it; empty: it came here
  absl::Time admitted;
};

// A task a client has and has not answered.
struct IssuedTask {
  uint64_t task = 0;
  uint64_t version = 0;
  absl::Time issued;
  absl::Time deadline = absl::InfiniteFuture();
  int idle_beats = 0;        // heartbeats in a row that say "idle" although it has this task
  // The client's update was refused and it may send another; if it does not, the task is given up then.
  absl::Time give_up = absl::InfiniteFuture();
  std::string give_up_reason;
};

struct JobRuntime {
  uint32_t number = 0;                     // local number for workers and pool, never reused
  TensorLayout layout;                     // of the model
  TensorLayout update_layout;              // of an update: more trainable elements where the strategy's updates carry several vectors
  std::string fingerprint;                 // of update_layout
  uint64_t layout_id = 0;                  // first 8 bytes of the fingerprint
  Arithmetic arithmetic = Arithmetic::kFloat64;
  std::unique_ptr<Strategy> strategy;
  std::unique_ptr<Reducer> reducer;
  std::vector<ScalarInfo> scalars;         // that every update carries
  UpdateEncoding encoding{};               // of its updates as they travel and lie in objects
  std::unique_ptr<JobPrivacy> privacy;     // null: the job has none
  std::unique_ptr<const MoeState> moe;     // null: the model has no experts
  std::unique_ptr<const LiveTriplets> live;  // null: updates are of all that is trained
  std::unique_ptr<RoundPlanner> planner;   // how the workers share the work; under the mutex once the job is open
  std::shared_ptr<ObjectPool> pool;        // shared: see above
  std::shared_ptr<ModelBuffer::Shelf> shelf;
  std::unique_ptr<Round> round;            // under the mutex
  StrategyState state;                     // commit thread only
  ClientTable clients;                     // as stored, until the engine takes it over
  // Updates are kept whole until the commit, and no worker folds them.
  bool keeps_updates() const { return strategy->whole_reducer() != nullptr; }
  // Of an update, as it travels and lies in an object, that starts from this version.
  size_t UpdateBytes(const ModelRef& version) const {
    return live != nullptr && version != nullptr ? live->UpdateBytes(version->bytes()) : encoding.total_bytes();
  }
};

// Callbacks of WatchJob. Its own lock, held while they run, so that a destroyed token means no further call.
class WatchList {
 public:
  uint64_t Add(std::function<void()> changed);
  void Remove(uint64_t id);
  void Notify();

 private:
  absl::Mutex mutex_;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, std::function<void()>> watchers_ ABSL_GUARDED_BY(mutex_);
};

struct Job {
  std::string id;
  JobSpec spec;
  v1::JobRow row;
  std::shared_ptr<JobRuntime> runtime;     // null: final, or queued for memory
  std::string queued_for;                  // why it is not open yet
  bool opening = false;                    // some thread is at it
  size_t budget_bytes = 0;                 // of the pool budget: workers' accumulators and object pool
  std::string lost_pending;                // the aggregate was lost while its partial was being journalled
  ModelRef model;                          // the current version while open
  ModelRef vectors;                        // the newest that were fetched, of a strategy that sends some down
  std::weak_ptr<const ModelBuffer> loaded; // an older version while somebody reads it
  v1::VersionRow latest;                   // its manifest
  uint64_t artifact_bytes = 0;
  std::map<std::string, IssuedTask> tasks; // by client
  std::set<std::string> idle;              // clients that the engine counts as idle
  uint64_t max_task = 0;                   // largest task id issued so far
  std::unordered_map<UpdateId, UpdateEntry> updates;
  std::deque<UpdateId> settled;            // refused entries, oldest first: bounded memory
  std::map<UpdateId, WritableObject> arriving;  // handed to the engine, not yet folded

  absl::Time wake = absl::InfiniteFuture();
  absl::Time first_task = absl::InfinitePast();  // of the open version
  int64_t started_us = 0;
  bool committing = false;
  std::string commit_trouble;              // the state store's last answer while a commit is tried again
  std::string upload_trouble;              // and to the last client that wanted to upload; empty: there is room
  size_t in_flight = 0;                    // handed to the workers, not reported yet
  uint64_t round_number = 0;               // workers' round
  absl::Time hurry_at = absl::InfiniteFuture();  // its deadline, after which no timing makes workers wait
  size_t folded_since_journal = 0;
  uint64_t folded = 0;                     // since it was opened
  uint64_t commits_made = 0;               // by this process, and the time they took
  absl::Duration commit_time;
  bool quiescing = false;                  // folds wait in `held` until the partial is journalled
  bool journalling = false;
  std::vector<std::pair<UpdateId, ObjectKey>> held;
  absl::Time next_journal = absl::InfinitePast();

  JobNodes nodes;                          // this node is the top
  RelayedJob relayed;                      // row.relayed(): it belongs to the top
  uint64_t partials_taken = 0;             // of other nodes, since the daemon started

  std::vector<v1::Metric> metrics;
  std::deque<v1::RoundTiming> timings;     // the last kMaxTimings
  std::deque<std::pair<int64_t, uint64_t>> commits;  // wall time and updates of the last kMaxCommitsForRate versions
  absl::Duration fold_time = absl::Milliseconds(50);  // smoothed, from admission to folded
  bool records_tidied = false;             // recorded updates that no version counts are gone
  bool finishing = false;                  // done, waiting for the last evaluation
  absl::Time finish_by;

  uint64_t changes = 0, persisted = 0;     // of the row: what must be, and what is in the store
  std::shared_ptr<WatchList> watchers = std::make_shared<WatchList>();

  bool Final() const { return row.state() == v1::JOB_STATE_DONE || row.state() == v1::JOB_STATE_FAILED || row.state() == v1::JOB_STATE_CANCELLED; }
  bool Open() const { return runtime != nullptr && !Final(); }
};
using JobPtr = std::shared_ptr<Job>;

// "queued", "running", "done", …
std::string StateText(v1::JobState state);

// Of a job with privacy: the norm that updates from its current version are clipped to.
inline double ClipOf(const Job& job) { return job.latest.info().privacy().clip(); }

// What a person sees. `waiting_for` is computed by the caller.
v1::Job ToProto(const Job& job);

// Row of a new job. `id` is "<name>-<6 hex>".
v1::JobRow MakeJobRow(const std::string& id, const JobSpec& spec, const TensorLayout& layout, const std::string& artifact_sha256);

// Layout, strategy, reducer of a job; no pool, workers or engine yet. `entry`: of the job's strategy, or null where there is none.
absl::StatusOr<std::shared_ptr<JobRuntime>> MakeRuntime(const JobSpec& spec, const TensorLayout& layout, const StrategyEntry* entry,
                                                        const PlannerLimits& limits, const CapacityBook& capacities);

// Bytes of the job's sums: of a journalled partial, and of a worker's slab that holds them all.
size_t WorkerBytes(const JobRuntime& runtime);
// Bytes that the workers keep for this job, outside the object pool.
size_t SlabMemory(const JobRuntime& runtime);

}  // namespace tributary::aggregator
