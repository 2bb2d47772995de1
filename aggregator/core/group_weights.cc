#include "aggregator/core/group_weights.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace tributary::aggregator {

absl::Status CheckRuns(std::span<const WeightRun> runs, size_t elements) {
  size_t before = 0;
  for (const WeightRun& run : runs) {
    if (run.end <= before) return InvalidArgument("weights: expected a run that ends after element {}, got one that ends at {}", before, run.end);
    if (!(run.factor >= 0 && std::isfinite(run.factor))) return InvalidArgument("weights: run up to {}: expected a finite factor >= 0, got {}", run.end, run.factor);
    before = run.end;
  }
  if (!runs.empty() && before != elements) return InvalidArgument("weights: expected runs up to element {}, got {}", elements, before);
  return absl::OkStatus();
}

double LargestFactor(std::span<const WeightRun> runs) {
  double largest = 1;
  for (const WeightRun& run : runs) largest = std::max(largest, run.factor);
  return largest;
}

const WeightRun& RunAt(std::span<const WeightRun> runs, size_t element) {
  const auto at = std::upper_bound(runs.begin(), runs.end(), element, [](size_t e, const WeightRun& run) { return e < run.end; });
  TRIB_CHECK(at != runs.end(), "element {} is in none of {} runs", element, runs.size());
  return *at;
}

}  // namespace tributary::aggregator
