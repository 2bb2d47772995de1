#include "aggregator/core/privacy/noisy_sums.h"

#include <algorithm>
#include <functional>

#include "common/check.h"

namespace tributary::aggregator {

size_t NoisySums::ElementOf(const std::byte* state) const {
  const size_t element_bytes = inner_.state_bytes_per_element();
  for (const StatePiece& piece : pieces_) {
    const std::byte* end = piece.state + piece.count * element_bytes;
    // std::less compares pointers into different arrays too.
    if (std::less<>()(state, piece.state) || !std::less<>()(state, end)) continue;
    return piece.first + static_cast<size_t>(state - piece.state) / element_bytes;
  }
  TRIB_CHECK(false, "a report of a state that belongs to no piece");
  return 0;
}

void NoisySums::ReportBlock(const std::byte* state, size_t count, double sum_weight, double* mean) const {
  inner_.ReportBlock(state, count, sum_weight, mean);
  if (count == 0) return;
  const size_t first = ElementOf(state);
  const size_t noised = first < trainable_ ? std::min(count, trainable_ - first) : 0;
  AddNormals(words_, first, stddev_ / sum_weight, std::span(mean, noised));
}

}  // namespace tributary::aggregator
