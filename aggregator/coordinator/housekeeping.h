// Applies what retention.h says to the jobs of a store, a few versions a call, so that commits do not wait for it.
// Borrows the store. Thread-compatible: the commit thread's. Errors: the store's; the call can be made again.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "aggregator/state/retention.h"
#include "aggregator/state/state_store.h"
#include "common/status.h"

namespace tributary::aggregator {

class Housekeeping {
 public:
  Housekeeping(StateStore* store, const RetentionOptions& options) : store_(store), options_(options) {}

  // Does what is due of one job. `too_stale(base)`: an update made from version `base` would be refused now and ever after.
  // `now_us`: wall clock. True: there is more to do at once.
  absl::StatusOr<bool> Tidy(const std::string& job, const std::function<bool(uint64_t base)>& too_stale, int64_t now_us);

 private:
  struct Progress {
    uint64_t first = 0;        // the job's
    uint64_t tensors = 0;      // the first version that is not decided yet
    uint64_t updates = 0;
  };
  absl::StatusOr<bool> TidyTensors(const std::string& job, uint64_t latest, Progress& at, int64_t now_us);
  absl::StatusOr<bool> TidyUpdates(const std::string& job, uint64_t latest, Progress& at, const std::function<bool(uint64_t base)>& too_stale,
                                   int64_t now_us);

  StateStore* const store_;
  const RetentionOptions options_;
  std::map<std::string, Progress> progress_;  // by job
};

}  // namespace tributary::aggregator
