// Tasks between their fetch and a learner, so that a learner that trains clients side by side gets as many of a job at once as there are:
// while others of the job are on their way, those that are here wait for them.
//
//   Expect(job) ── fetch ──> Arrive(job, task or nothing) ──> Take(most): one task, or up to `most` of one job that train
//
// Whoever calls Arrive has a thread of the learners call Take until it gives nothing: the last to arrive of a job finds all of them.
// Threads: safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/rpc/work.h"

namespace tributary::client {

struct ReadyTask {
  size_t identity = 0;  // whose it is
  WorkContext context;
  PreparedTask prepared;
};

class ReadyTasks {
 public:
  void Expect(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing: its fetch failed.
  void Arrive(const std::string& job, std::optional<ReadyTask> task) ABSL_LOCKS_EXCLUDED(mutex_);
  // The first that needs not wait. `most` is the learner's cohort_size(); with 1 none waits and each goes alone.
  std::vector<ReadyTask> Take(size_t most) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Mutex mutex_;
  std::deque<ReadyTask> ready_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> expected_ ABSL_GUARDED_BY(mutex_);  // tasks on their way, by job
};

}  // namespace tributary::client
