// When a seat folds what is queued in front of it (dataplane.md §7.1): a pure decision, asked whenever something changes.
//
//   eager    each arrival
//   lazy     when all inputs are there (the reference arm)
//   batch:B  when B are queued, when all are there, or when the oldest has waited for `age`
// The same policy decides on updates and on partials. A seat without room for more, or told to hurry, folds whatever the policy:
// waiting would be for ever.
// Source: dataplane.md §7.1. Pure. Threads: policies are immutable.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>

#include "common/status.h"

namespace tributary::aggregator {

enum class FoldTimingKind : uint32_t { kEager = 0, kLazy = 1, kBatch = 2 };

struct FoldQueue {
  absl::Time now;
  uint64_t queued = 0;                         // arrived, not folded
  bool goal_known = false;
  uint64_t missing = 0;                        // of a known goal: not arrived yet
  absl::Time oldest = absl::InfiniteFuture();  // arrival of the oldest queued one
};

struct FoldDecision {
  bool fold = false;                              // all that is queued, now; or
  absl::Time look_again = absl::InfiniteFuture(); // then at the latest; an arrival asks sooner
};

class FoldTiming {
 public:
  virtual ~FoldTiming() = default;
  virtual FoldDecision Decide(const FoldQueue& queue) const = 0;
};

// INVALID_ARGUMENT for a kind that does not exist, or a batch of 0.
absl::StatusOr<std::unique_ptr<FoldTiming>> MakeFoldTiming(FoldTimingKind kind, uint32_t batch, absl::Duration age);

}  // namespace tributary::aggregator
