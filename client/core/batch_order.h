// The order of minibatches: a fresh permutation of the shard in every epoch, cut into batches. A remainder of a single example joins
// the batch before it, because batch normalisation cannot train on one value per channel. Pure; equal seeds give equal orders on
// every machine.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "client/core/random.h"

namespace tributary::client {

class BatchOrder {
 public:
  // count >= 1, batch >= 1.
  BatchOrder(size_t count, size_t batch, uint64_t seed) : batch_(batch), seed_(seed), order_(count) {}

  size_t batches_per_epoch() const {
    const size_t full = order_.size() / batch_;
    const size_t rest = order_.size() % batch_;
    const bool joins = rest == 1 && full > 0 && batch_ > 1;
    return full + (rest > 0 && !joins ? 1 : 0);
  }

  // How many examples minibatch `step` has.
  size_t SizeAt(uint64_t step) const {
    const size_t index = step % batches_per_epoch();
    return index + 1 == batches_per_epoch() ? order_.size() - index * batch_ : batch_;
  }

  // Positions in minibatch `step` >= 0, counted through the epochs; call with rising steps. Valid until the next call.
  std::span<const uint32_t> At(uint64_t step) {
    const size_t per_epoch = batches_per_epoch();
    const uint64_t epoch = step / per_epoch;
    const size_t index = step % per_epoch;
    if (epoch + 1 != shuffled_) {
      std::iota(order_.begin(), order_.end(), 0U);
      CounterRandom(seed_, epoch).Shuffle(order_);
      shuffled_ = epoch + 1;
    }
    const size_t first = index * batch_;
    const size_t last = index + 1 == per_epoch ? order_.size() : first + batch_;
    return std::span(order_).subspan(first, last - first);
  }

 private:
  size_t batch_;
  uint64_t seed_;
  uint64_t shuffled_ = 0;  // epoch that order_ is for, plus 1
  std::vector<uint32_t> order_;
};

}  // namespace tributary::client
