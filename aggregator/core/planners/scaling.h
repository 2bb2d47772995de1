// How many worker processes a node should have (dataplane.md §9.2, §9.3): between plans workers are only promoted or parked; a plan
// unparks, starts, parks and evicts.
// Parked workers keep their memory populated, which is what makes unparking cheap and what a quota bounds: a node keeps parked what
// its last few plans would have used, and evicts the coldest of the rest.
// Pure and deterministic. Thread-compatible.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <deque>
#include <span>
#include <vector>


namespace tributary::aggregator {

// Workers whose accumulators fit `quota_bytes`; at least 1, or the node could do nothing. bytes_per_worker > 0.
int64_t WorkerQuota(uint64_t quota_bytes, uint64_t bytes_per_worker);

// Parked workers worth keeping: enough to reach the highest of the last `plans` plans again without a new process.
class WarmPool {
 public:
  explicit WarmPool(size_t plans = 5) : plans_(plans) {}
  void OnPlan(int64_t workers);
  // `active`: in a role; `quota`: workers of any kind that the node has room for.
  int64_t Target(int64_t active, int64_t quota) const;

 private:
  size_t plans_;
  std::deque<int64_t> recent_;
};

struct ScaleInput {
  int64_t wanted = 0;       // workers that the plan staffs on the node
  int64_t active = 0;
  int64_t parked = 0;
  int64_t warm_target = 0;  // WarmPool::Target(wanted, quota), or 0 without reuse
  int64_t quota = 1;
};
struct ScaleDecision {
  int64_t unpark = 0;
  int64_t start = 0;
  int64_t park = 0;
  int64_t evict = 0;        // of the parked ones, after parking
  bool operator==(const ScaleDecision&) const = default;
};
// active + unpark + start − park = min(wanted, quota); nothing is started while something is parked; afterwards at most warm_target
// are parked, and all together are at most the quota.
ScaleDecision Scale(const ScaleInput& input);

struct ParkedWorker {
  uint32_t worker = 0;
  absl::Time since;
};
// The `count` workers that were parked longest, ties by highest id; coldest first.
std::vector<uint32_t> Coldest(std::vector<ParkedWorker> parked, int64_t count);

}  // namespace tributary::aggregator
