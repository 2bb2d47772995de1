#include "aggregator/ingress/stream_watch.h"

#include <algorithm>
#include <string>

namespace tributary::aggregator {

void StreamWatch::Add(const std::shared_ptr<StreamEnd>& stream, std::string what) {
  absl::MutexLock lock(&mutex_);
  if (entries_.size() >= prune_at_) {  // amortised: at least as many additions as entries looked at
    std::erase_if(entries_, [](const Entry& entry) { return entry.stream.expired(); });
    prune_at_ = std::max<size_t>(64, 2 * entries_.size());
  }
  entries_.push_back({stream, std::move(what)});
}

void StreamWatch::Sweep(absl::Time now) {
  std::vector<std::pair<std::shared_ptr<StreamEnd>, std::string>> expired;
  {
    absl::MutexLock lock(&mutex_);
    std::erase_if(entries_, [&](const Entry& entry) {
      const std::shared_ptr<StreamEnd> stream = entry.stream.lock();
      if (stream == nullptr) return true;
      if (stream->TakeExpired(now)) expired.emplace_back(stream, entry.what);
      return false;
    });
  }
  for (const auto& entry : expired) entry.first->End(DeadlineExceeded("no {} in time", entry.second));
}

void StreamWatch::EndEndless(const absl::Status& status) {
  std::vector<std::shared_ptr<StreamEnd>> endless;
  {
    absl::MutexLock lock(&mutex_);
    for (const Entry& entry : entries_) {
      std::shared_ptr<StreamEnd> stream = entry.stream.lock();
      if (stream != nullptr && stream->endless()) endless.push_back(std::move(stream));
    }
  }
  for (const auto& stream : endless) stream->End(status);
}

}  // namespace tributary::aggregator
