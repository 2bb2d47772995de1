// What a layer remembers of its loads (how even they are: common/moe_stats.h). Threads: values and pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/core/moe/moe_math.h"
#include "common/moe_stats.h"

namespace tributary::client {

// Tokens of a selection that no expert serves.
size_t UnservedTokens(const Selection& selection);

// The loads of one layer over the steps of a task.
class LoadRecord {
 public:
  // Errors of our own: another number of experts than before is a TRIB_CHECK.
  void Add(std::span<const int64_t> counts);
  const std::vector<int64_t>& counts() const { return counts_; }  // summed
  double average() const { return steps_ == 0 ? 0 : sum_ / static_cast<double>(steps_); }  // AvgMaxVio
  double largest() const { return largest_; }                                             // SupMaxVio

 private:
  std::vector<int64_t> counts_;
  int64_t steps_ = 0;
  double sum_ = 0, largest_ = 0;
};

}  // namespace tributary::client
