// The central mechanism: a job's sums with Gaussian noise on every trainable element, once, at the root, before the server step. What
// follows it is post-processing (algorithms.md §13.2).
//
// A reducer whose report is that of `inner` plus stddev/sum_weight · N(0, 1), element e of the layout with the e-th normal of `words`. Only
// reports: FoldBlock and MergeBlock are inner's. Borrows all it is made of. `pieces` hold the sums that reports will be asked for.
// TRIB_CHECK: a report of a state outside the pieces. Threads: thread-compatible, as `words`.
#pragma once

#include <cstddef>
#include <span>

#include "aggregator/core/reducer.h"
#include "aggregator/core/server_step.h"
#include "common/random_words.h"

namespace tributary::aggregator {

class NoisySums final : public Reducer {
 public:
  NoisySums(const Reducer& inner, std::span<const StatePiece> pieces, size_t trainable, double stddev, RandomWords& words)
      : inner_(inner), pieces_(pieces), trainable_(trainable), stddev_(stddev), words_(words) {}
  size_t state_bytes_per_element() const override { return inner_.state_bytes_per_element(); }
  bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const override {
    return inner_.FoldBlock(state, first, count, updates, fresh);
  }
  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override { return inner_.MergeBlock(state, other, count); }
  void ReportBlock(const std::byte* state, size_t count, double sum_weight, double* mean) const override;

 private:
  size_t ElementOf(const std::byte* state) const;

  const Reducer& inner_;
  const std::span<const StatePiece> pieces_;
  const size_t trainable_;
  const double stddev_;
  RandomWords& words_;
};

}  // namespace tributary::aggregator
