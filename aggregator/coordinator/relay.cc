#include "aggregator/coordinator/relay.h"

#include <algorithm>
#include <cstring>

namespace tributary::aggregator {

bool NodeSums::Merge(const Reducer& reducer, std::span<const std::byte> partial, size_t float_count, size_t counter_count) {
  const size_t float_bytes = float_count * reducer.state_bytes_per_element();
  std::vector<int64_t> counters(counter_count);
  if (counter_count > 0) std::memcpy(counters.data(), partial.data() + float_bytes, counter_count * sizeof(int64_t));
  absl::MutexLock lock(&mutex_);
  if (floats_.empty()) {
    floats_.assign(partial.begin(), partial.begin() + static_cast<ptrdiff_t>(float_bytes));
    counters_ = std::move(counters);
    return true;
  }
  for (size_t i = 0; i < counter_count; ++i) counters_[i] = std::max(counters_[i], counters[i]);
  return reducer.MergeBlock(floats_.data(), partial.data(), float_count);
}

absl::Status NodeSums::Finish(const Reducer& reducer, std::span<const StatePiece> own, std::span<const int64_t> own_counters) {
  const size_t per_element = reducer.state_bytes_per_element();
  absl::MutexLock lock(&mutex_);
  for (const StatePiece& piece : own) {
    if ((piece.first + piece.count) * per_element > floats_.size()) {
      return Internal("sums: a piece of elements {} to {} is outside of the {} of the nodes' partials", piece.first, piece.first + piece.count,
                      floats_.size() / per_element);
    }
    if (!reducer.MergeBlock(floats_.data() + piece.first * per_element, piece.state, piece.count)) {
      return FailedPrecondition("sums: elements {} to {} overflow where this node's meet the others'", piece.first, piece.first + piece.count);
    }
  }
  for (size_t i = 0; i < std::min(own_counters.size(), counters_.size()); ++i) counters_[i] = std::max(counters_[i], own_counters[i]);
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
