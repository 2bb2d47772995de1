#include "aggregator/core/planners/scaling.h"

#include <algorithm>

#include "common/check.h"

namespace tributary::aggregator {

int64_t WorkerQuota(uint64_t quota_bytes, uint64_t bytes_per_worker) {
  TRIB_CHECK(bytes_per_worker > 0);
  return static_cast<int64_t>(std::clamp<uint64_t>(quota_bytes / bytes_per_worker, 1, uint64_t{1} << 31));
}

void WarmPool::OnPlan(int64_t workers) {
  recent_.push_back(workers);
  if (recent_.size() > plans_) recent_.pop_front();
}

int64_t WarmPool::Target(int64_t active, int64_t quota) const {
  const int64_t peak = recent_.empty() ? 0 : *std::max_element(recent_.begin(), recent_.end());
  return std::max<int64_t>(0, std::min(peak, quota) - active);
}

ScaleDecision Scale(const ScaleInput& input) {
  ScaleDecision decision;
  const int64_t wanted = std::clamp<int64_t>(input.wanted, 0, input.quota);
  if (wanted > input.active) {
    decision.unpark = std::min(input.parked, wanted - input.active);
    decision.start = wanted - input.active - decision.unpark;
  } else {
    decision.park = input.active - wanted;
  }
  const int64_t parked = input.parked - decision.unpark + decision.park;
  decision.evict = std::max<int64_t>(0, parked - std::min(input.warm_target, input.quota - wanted));
  return decision;
}

std::vector<uint32_t> Coldest(std::vector<ParkedWorker> parked, int64_t count) {
  std::sort(parked.begin(), parked.end(), [](const ParkedWorker& a, const ParkedWorker& b) {
    return a.since != b.since ? a.since < b.since : a.worker > b.worker;
  });
  std::vector<uint32_t> coldest;
  for (size_t i = 0; i < parked.size() && static_cast<int64_t>(i) < count; ++i) coldest.push_back(parked[i].worker);
  return coldest;
}

}  // namespace tributary::aggregator
