#include "client/core/moe/moe_metrics.h"

#include <algorithm>

#include "common/check.h"

namespace tributary::client {

size_t UnservedTokens(const Selection& selection) {
  std::vector<bool> served(selection.tokens, false);
  for (const int64_t token : selection.token) served[static_cast<size_t>(token)] = true;
  return static_cast<size_t>(std::count(served.begin(), served.end(), false));
}

void LoadRecord::Add(std::span<const int64_t> counts) {
  if (counts_.empty()) counts_.assign(counts.size(), 0);
  TRIB_CHECK(counts_.size() == counts.size(), "{} experts, {} before", counts.size(), counts_.size());
  for (size_t j = 0; j < counts.size(); ++j) counts_[j] += counts[j];
  const double violation = MaxVio(counts);
  ++steps_;
  sum_ += violation;
  largest_ = std::max(largest_, violation);
}

}  // namespace tributary::client
