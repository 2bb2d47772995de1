// Weights of an update by stretches of its elements, where not all tensors have the update's own: Σ w·f_g·Δ_g of group g, divided at the root
// by Σ w·f_g. Experts weighted by their tokens (moe_state.h) are such groups.
// No runs at all: every element has the update's weight. Threads: pure.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "common/status.h"

namespace tributary::aggregator {

// Elements from the end of the run before (0) to `end`.
struct WeightRun {
  size_t end = 0;
  double factor = 1;
  bool operator==(const WeightRun&) const = default;
};
using WeightRuns = std::vector<WeightRun>;

// INVALID_ARGUMENT: ends that do not ascend to `elements`, or a factor that is negative or not finite.
absl::Status CheckRuns(std::span<const WeightRun> runs, size_t elements);
// At least 1.
double LargestFactor(std::span<const WeightRun> runs);
// The run that holds `element`, which one of them does.
const WeightRun& RunAt(std::span<const WeightRun> runs, size_t element);

}  // namespace tributary::aggregator
