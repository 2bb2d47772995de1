// The half of a strategy that the root runs once per commit: from the old model, the un-normalised sums and the strategy's own vectors
// to the new model. Element-wise, block by block, so that no temporary of the model's size is made.
//
// What the sums are divided by is the step's business (Σw, N, the buffer, 1), never the reducer's. Trainable elements go through
// ServerStep; buffers take the weighted mean of values, always by Σw, or stay as they are (`buffers: local`); counters take the
// maximum (algorithms.md §1.4). What the server owns stays as it is, whoever changes it does so afterwards.
// Threads: thread-compatible. A step keeps nothing between commits except in StrategyState.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/contribution.h"
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

// The numbers of a commit. Borrowed for the call.
struct CommitFacts {
  uint64_t version = 0;        // that is being made
  double sum_weight = 0;       // Σ w of the fold, order-free
  int64_t registered = 0;      // N, all clients the job has seen
  std::span<const RoundContributor> contributors;  // at least one
};

// Elements [first, first + count) of the trainable region, in fp64. `model` comes in as the old values and leaves as the new.
struct StepBlock {
  size_t first = 0;
  std::span<double> model;
  std::span<const double> sums;  // Σ w·Δ
  double divisor = 1;            // ServerStep::Divisor of this commit
  const CommitFacts* facts = nullptr;
  std::span<const double> second{};  // Σ w·(the second group) of updates that carry two
  std::span<const double> base{};    // the model that the one contributor started from, if the step asks for it
  DType dtype = DType::kF32;         // of the model: what the new values are rounded to
};

class ServerStep {
 public:
  virtual ~ServerStep() = default;
  // Names of the vectors it needs.
  virtual std::vector<std::string> state_vectors() const { return {}; }
  // What every element of such a vector is before the first commit.
  virtual double start_of(const std::string&) const { return 0; }
  // Or the initial model's values.
  virtual bool starts_as_model(const std::string&) const { return false; }
  // Whether the vector is a sum over the clients' states, and so begins anew when they do (BeginClientsAnew).
  virtual bool goes_with_clients(const std::string&) const { return false; }
  // What makes a mean of the sums; finite and > 0.
  virtual absl::StatusOr<double> Divisor(const CommitFacts& facts) const { return facts.sum_weight; }
  // Whether it needs the model that the contributor started from. Such a strategy commits single updates.
  virtual bool needs_base() const { return false; }
  // Changes the block's elements of `state`'s vectors and nothing else: blocks may be applied side by side.
  virtual void ApplyBlock(const StepBlock& block, StrategyState& state) const = 0;
};

// Contiguous accumulators of one element range [first, first + count); ranges of one aggregate are disjoint and cover everything.
struct StatePiece {
  size_t first = 0;
  size_t count = 0;
  const std::byte* state = nullptr;
};

// Adds the step's vectors where they are missing, as they are before the first commit; `model`: the initial one. INVALID_ARGUMENT for one
// of another size.
absl::Status PrepareState(const ServerStep& step, const TensorLayout& layout, std::span<const std::byte> model, StrategyState* state);

// Of updates whose elements are not the trainable ones of the model: what they stand for. Pure.
class SumSpread {
 public:
  virtual ~SumSpread() = default;
  // Σ w·Δ of all trainable elements from the sums over all elements of the updates; an element that none of them moves has 0.
  virtual absl::StatusOr<std::vector<double>> Spread(const TensorLayout& model, const CommitFacts& facts, std::span<const double> sums) const = 0;
};

struct StepInput {
  const TensorLayout* layout = nullptr;    // of the model
  size_t groups = 1;                       // 1 or 2: the sums are over the model's float elements with the trainable ones so many times in front
  const Reducer* reducer = nullptr;
  std::span<const StatePiece> pieces;
  std::span<const int64_t> counters;       // empty: they stay as they were
  std::span<const std::byte> previous;     // layout.total_bytes()
  std::span<const std::byte> base;         // the same, for a step that needs it
  CommitFacts facts;
  bool keep_buffers = false;               // buffers stay as they were
  bool without_buffers = false;            // the same, and updates carry none: the sums end with the trainable elements
  std::span<const WeightRun> scales{};     // up to the last summed element: sums are multiplied by them before the step; 0: nothing there changes
  const SumSpread* spread = nullptr;       // only without buffers
  ForEach for_each{};                      // blocks side by side: of a reducer and a step that ask for no order
};

// Rounds `values` to the type; false if one is not finite then. `out`: values.size() elements.
bool StoreFloats(DType dtype, std::span<const double> values, std::span<std::byte> out);

// Writes the new model to `next` (layout.total_bytes(), may not alias `previous`).
// INVALID_ARGUMENT: Σw or divisor not > 0, pieces that leave gaps. DATA_LOSS naming the tensor if a result is not finite (the
// version must not be committed then; `state` is unusable and must be reloaded).
absl::Status ApplyServerStep(const ServerStep& step, const StepInput& input, StrategyState& state, std::span<std::byte> next);

}  // namespace tributary::aggregator
