// What a task does between StartWork and its result: fetch the model (and the job's artifact), get the data, train or evaluate.
// Shared by all identities of a daemon. Threads: safe; Train and Evaluate of one learner run on one thread of the caller's.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/core/eggroll_fitness.h"
#include "client/core/session.h"
#include "client/data/client_state.h"
#include "client/rpc/client_runtime.h"
#include "client/rpc/connection.h"
#include "client/rpc/fetch.h"
#include "common/live_triplets.h"
#include "common/tensor_layout.h"
#include "tributary/v1/federation.pb.h"

namespace tributary::client {

// A job as the server described it; immutable.
struct Job {
  JobSummary summary;
  JobSpec spec;
  TensorLayout layout;
  TensorLayout update_layout;               // of what its clients return
  std::vector<std::string> version_vectors; // what comes with a version besides the model
  std::string layout_fingerprint;           // of update_layout
  UpdateEncoding encoding;                  // of update_layout, as it travels
  std::shared_ptr<const LiveTriplets> live; // null: updates are of all that is trained
  bool vectors_in_model = false;            // as JobInfo says
  bool client_state = false;
  std::string mirrored_state;
  std::optional<FitnessReplay> replay;      // of jobs whose versions follow from fitness
  std::string artifact_sha256;
  uint64_t artifact_bytes = 0;
};

// Parses each job once, for all identities. A job that makes no sense here gets a summary with a `problem`, never an error.
class JobBook {
 public:
  explicit JobBook(std::string data_path) : data_path_(std::move(data_path)) {}
  std::shared_ptr<const Job> Learn(const v1::JobInfo& info);
  std::shared_ptr<const Job> Find(const std::string& job) const;  // null if unknown

 private:
  const std::string data_path_;
  mutable absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<const Job>> jobs_ ABSL_GUARDED_BY(mutex_);  // shared with work under way
};

// A task with everything fetched, ready for a learner.
struct PreparedTask {
  Task task;
  std::shared_ptr<const Job> job;
  std::shared_ptr<const FetchedObject> model;
  std::shared_ptr<const FetchedObject> vectors;  // null: none come with a version; or the same object as `model`
  std::shared_ptr<const FetchedObject> initial;  // null: the client's first task of a strategy that begins with it is elsewhere
  std::shared_ptr<const ClientState> state = std::make_shared<ClientState>();  // shared by the stages of the task
  std::string artifact_path;
};

struct WorkContext {
  Identity identity;
  int64_t shard = 0;
  int64_t shards = 1;
  std::shared_ptr<std::atomic<bool>> cancelled;  // shared: set by the loop, read by the work
  const StateFiles* state = nullptr;             // of the identity; null: it keeps none
};

class Work {
 public:
  Work(Connection& connection, const std::filesystem::path& state, std::string data_path)
      : connection_(connection), jobs_(std::move(data_path)), models_(connection), vectors_(connection, /*vectors=*/true), artifacts_(connection, state) {}
  JobBook& jobs() { return jobs_; }

  absl::StatusOr<PreparedTask> Prepare(const WorkContext& context, const Task& task);

  // Checks what the learner gives: size, finite positive weight; metrics that are no finite number are left out.
  using Progress = std::function<void(float)>;
  static absl::StatusOr<TrainResult> Train(const WorkContext& context, const PreparedTask& prepared, Learner& learner,
                                           const DatasetProvider& provide_data, const Progress& progress);
  // The same for several tasks of one job at once; results in their order.
  struct CohortTask {
    const WorkContext* context = nullptr;
    const PreparedTask* prepared = nullptr;
    Progress progress;
  };
  static std::vector<absl::StatusOr<TrainResult>> TrainCohort(std::span<const CohortTask> tasks, Learner& learner, const DatasetProvider& provide_data);
  static absl::StatusOr<Evaluation> Evaluate(const WorkContext& context, const PreparedTask& prepared, Learner& learner,
                                             const DatasetProvider& provide_data, const Progress& progress);

 private:
  absl::Status PrepareState(const WorkContext& context, const CancelCheck& cancelled, PreparedTask* prepared);
  // The server's copy of a state that is lost here; nothing if it keeps none.
  absl::StatusOr<std::optional<ClientState>> FetchMirrored(const WorkContext& context, const PreparedTask& prepared, const CancelCheck& cancelled);

  Connection& connection_;
  JobBook jobs_;
  ModelCache models_;
  ModelCache vectors_;
  ArtifactStore artifacts_;
};

}  // namespace tributary::client
