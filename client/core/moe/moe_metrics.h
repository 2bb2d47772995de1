// How evenly experts are loaded and how far they have specialised, from counts alone. Threads: values and pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/core/moe/moe_math.h"

namespace tributary::client {

// max_i c_i / mean c − 1 of one batch; 0 where nothing was routed. (Wang et al. 2024, arXiv 2408.15664, eq. 7.)
double MaxVio(std::span<const int64_t> counts);

// (Σπ)²/Σπ²: as many experts as would carry the load if they shared it evenly.
double EffectiveExperts(std::span<const int64_t> counts);

// I(client; expert) / ln(clients) of counts[client][expert]: 0 if all clients load the experts alike, 1 if the expert tells the client.
// 0 for less than two clients.
double Specialisation(std::span<const std::vector<int64_t>> counts);

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
