#include "aggregator/coordinator/pool_scaler.h"

#include <algorithm>
#include <utility>

namespace tributary::aggregator {

PoolScaler::PoolScaler(uint32_t workers, absl::Duration period, absl::Time now)
    : period_(period), next_(now + period), parked_since_(workers, now) {
  warm_.OnPlan(workers);
}

PoolScaler::Orders PoolScaler::OnPlan(absl::Time now, std::span<const Worker> workers) {
  Orders orders;
  int64_t needed = 0;
  std::vector<ParkedWorker> parked;
  for (uint32_t i = 0; i < workers.size(); ++i) {
    if (workers[i].needed) {
      ++needed;
      if (!workers[i].running) orders.start.push_back(i);
    }
    if (workers[i].needed || !workers[i].running) {
      parked_since_[i] = absl::InfiniteFuture();
      continue;
    }
    parked_since_[i] = std::min(parked_since_[i], now);
    parked.push_back({.worker = i, .since = parked_since_[i]});
  }
  peak_ = std::max(peak_, needed);
  if (now < next_) return orders;
  next_ = now + period_;
  warm_.OnPlan(peak_);
  peak_ = needed;
  const auto quota = static_cast<int64_t>(workers.size());
  const ScaleDecision decision = Scale({.wanted = needed, .active = needed, .parked = static_cast<int64_t>(parked.size()),
                                        .warm_target = warm_.Target(needed, quota), .quota = std::max<int64_t>(1, quota)});
  orders.end = Coldest(std::move(parked), decision.evict);
  return orders;
}

}  // namespace tributary::aggregator
