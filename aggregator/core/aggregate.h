// The arithmetic of one commit in one process: what folds updates and makes the next model where no worker processes are (`tributary
// aggregate`, simulation, tests), and for strategies that need whole updates in the daemon as well.
//
// Any strategy of the table: sums for the mergeable ones (partial.h), copies of the updates for the others.
// Errors: as Partial's and ApplyServerStep's. Threads: thread-compatible.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/partial.h"
#include "aggregator/core/strategy.h"
#include "common/random_words.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

// What a strategy keeps between commits besides the model, rows of clients included.
struct MemoryState {
  StrategyState strategy;
  std::map<std::string, std::vector<std::byte>> rows;
  bool operator==(const MemoryState&) const = default;
};

class Aggregate {
 public:
  // `strategy` must outlive it. `expected_updates`: of one commit, bounds |w·x| in fixed point. `encoding`: how updates come; the default:
  // as they are. A model for which Strategy::UpdateLayout fails takes no update.
  Aggregate(const Strategy& strategy, const TensorLayout& model, Arithmetic arithmetic, int64_t expected_updates, const UpdateEncoding& encoding = {});

  // `contributor.weight` is the one that the engine has set, times what the server clips by. After an error nothing is changed.
  absl::Status Fold(const RoundContributor& contributor, std::span<const std::byte> update);
  // The same one after the other, bit for bit; sums with `for_each` (Partial::AccumulateAll). `keys`: of the inputs, in their order.
  absl::Status FoldAll(std::span<const UpdateKeyRef> keys, std::span<const PartialInput> inputs, const ForEach& for_each = {});
  // The same of updates that are elsewhere (Partial::AccumulateElsewhere), for strategies that need no whole ones.
  absl::Status FoldElsewhere(std::span<const PartialInput> inputs, const aggregator::FoldElsewhere& fold);

  struct Input {
    CommitFacts facts;
    std::span<const std::byte> previous;
    std::span<const std::byte> base;   // for a step that needs it
    double noise_stddev = 0;           // on each element of the sums: central privacy noise
    RandomWords* noise = nullptr;      // with noise_stddev > 0
    std::span<const WeightRun> scales{};  // StepInput's
    std::map<std::string, double>* measured = nullptr;  // WholeReducer::Finish
    ForEach for_each{};                // of the step's blocks, where no noise asks for their order
  };
  // Writes the new model to `next` and brings `state` up to it. After an error `state` is unusable.
  absl::Status Step(const Input& input, MemoryState* state, std::span<std::byte> next) const;

  size_t count() const { return count_; }

 private:
  absl::Status Keep(const UpdateKeyRef& key, const PartialInput& input);

  const Strategy& strategy_;
  TensorLayout layout_;
  Partial partial_;
  size_t count_ = 0;
  struct Kept {
    UpdateKeyRef key;
    double weight = 0;
    std::vector<std::byte> bytes;
  };
  std::vector<Kept> whole_;
};

// The server step of a strategy with a whole_reducer(), from `updates` in the order of their clients' names.
absl::Status ApplyWholeStep(const Strategy& strategy, const TensorLayout& layout, std::span<const WholeUpdate> updates, const RowReader& row,
                            const CommitFacts& facts, std::span<const std::byte> previous, StrategyState& state, std::span<std::byte> next,
                            std::map<std::string, double>* measured = nullptr);

// The trainable part of an update, its first group.
std::span<const std::byte> RowOf(const TensorLayout& layout, std::span<const std::byte> flat);
// A contributor's row after the commit; `row` reads the one before it. DATA_LOSS: it is of another size, or the sum is not finite.
absl::StatusOr<std::vector<std::byte>> NextRow(const Strategy& strategy, const TensorLayout& layout, const WholeUpdate& update, const RowReader& row);

// Adds what the server itself measures of an update (Strategy::norm_scalar).
void AddMeasured(const Strategy& strategy, const TensorLayout& layout, std::span<const std::byte> flat, Scalars* scalars);

}  // namespace tributary::aggregator
