// The files of an analytic job (client/core/analytic/problem.h): one safetensors file per client, clients in name order. A file
// `test.safetensors` in the folder is held out: evaluations of classifiers use it instead of the clients' own files.
// Client k of K has file k; files beyond the K-th are nobody's.
// Threads: safe. Errors: INVALID_ARGUMENT (not one file per client, content, files of different dimension), NOT_FOUND.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/core/analytic/problem.h"
#include "client/core/dataset.h"
#include "common/job_spec.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace tributary::client {

// One Dataset for each file, in name order, and the one to evaluate on. At least one.
struct AnalyticData {
  std::vector<std::shared_ptr<const Dataset>> clients;
  std::shared_ptr<const Dataset> evaluation;
  std::vector<std::string> names;  // the files' names without ".safetensors"
};
absl::StatusOr<std::shared_ptr<const AnalyticData>> LoadAnalytic(const JobSpec& spec);

// The same for a daemon's identities, each job's folder read once.
class AnalyticCache {
 public:
  // INVALID_ARGUMENT: fewer files than clients.
  absl::StatusOr<std::shared_ptr<const Dataset>> ShardOf(const JobSpec& spec, int64_t shard, int64_t shards);
  absl::StatusOr<std::shared_ptr<const Dataset>> Evaluation(const JobSpec& spec);

 private:
  absl::StatusOr<std::shared_ptr<const AnalyticData>> Load(const JobSpec& spec);
  absl::Mutex mutex_;  // held while files are read: a second identity waits for the same data
  std::map<std::string, std::shared_ptr<const AnalyticData>> loaded_ ABSL_GUARDED_BY(mutex_);
};

// What the job starts from: model.init's values if named, else the problems' own start.
absl::StatusOr<FlatModel> AnalyticStart(const JobSpec& spec, const AnalyticData& data);

}  // namespace tributary::client
