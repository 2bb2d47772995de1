// The half of a strategy that the root runs once per commit: from the old model, the mean and the strategy's own vectors to the
// new model. Element-wise, block by block, so that no temporary of the model's size is made.
//
// Trainable elements go through ServerStep; buffers take the mean of values; counters take the maximum (algorithms.md §1.4).
// Threads: thread-compatible. A step keeps nothing between commits except in StrategyState.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/reducer.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

// What a strategy keeps on the server besides the model: vectors over the trainable elements, by name ("momentum").
// Committed with the version; saved as safetensors-like flat bytes by the state store.
struct StrategyState {
  std::map<std::string, std::vector<double>> vectors;
  bool operator==(const StrategyState&) const = default;
};

// Elements [first, first + count) of the trainable region, in fp64. `model` comes in as the old values and leaves as the new.
struct StepBlock {
  size_t first = 0;
  std::span<double> model;
  std::span<const double> mean;  // of Δ
};

class ServerStep {
 public:
  virtual ~ServerStep() = default;
  // Names of the vectors it needs; they start at zero.
  virtual std::vector<std::string> state_vectors() const { return {}; }
  virtual void ApplyBlock(const StepBlock& block, StrategyState& state) const = 0;
};

// Contiguous accumulators of one element range [first, first + count); ranges of one aggregate are disjoint and cover everything.
struct StatePiece {
  size_t first = 0;
  size_t count = 0;
  const std::byte* state = nullptr;
};

// Writes the new model to `next` (layout.total_bytes(), may not alias `previous`). Empty `counters`: they stay as they were.
// INVALID_ARGUMENT: sum_weight not > 0, pieces that leave gaps. DATA_LOSS naming the tensor if a result is not finite (the
// version must not be committed then; `state` is unusable and must be reloaded).
absl::Status ApplyServerStep(const ServerStep& step, const TensorLayout& layout, const Reducer& reducer,
                             std::span<const StatePiece> pieces, double sum_weight, std::span<const int64_t> counters,
                             std::span<const std::byte> previous, StrategyState& state, std::span<std::byte> next);

}  // namespace tributary::aggregator
