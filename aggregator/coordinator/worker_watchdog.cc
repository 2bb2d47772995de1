#include "aggregator/coordinator/worker_watchdog.h"

#include <algorithm>

namespace tributary::aggregator {
namespace {

// What the time between two looks counts at most: the pool looks once a second while something is under way.
constexpr absl::Duration kLongestLook = absl::Seconds(2);

}  // namespace

WorkerWatchdog::Verdict WorkerWatchdog::Look(uint32_t worker, const WorkerFleet::Owner::Work& work, absl::Time now) {
  if (!work.waiting) {
    watched_.erase(worker);
    return Verdict::kFine;
  }
  const auto [at, fresh] = watched_.try_emplace(worker, Watched{work.stamp, now, absl::ZeroDuration(), false, false});
  Watched& watched = at->second;
  if (watched.stamp != work.stamp) watched = {work.stamp, now, absl::ZeroDuration(), false, false};
  watched.silent += std::clamp(now - watched.looked, absl::ZeroDuration(), kLongestLook);
  watched.looked = now;
  if (watched.hung || watched.silent < patience_ / 2) return Verdict::kFine;
  if (watched.asked) {
    watched.hung = true;
    return Verdict::kHung;
  }
  watched.asked = true;
  watched.silent = absl::ZeroDuration();
  return Verdict::kAsk;
}

}  // namespace tributary::aggregator
