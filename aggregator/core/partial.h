// An aggregate in the making, in memory: P = (Σ w·x, Σ w, n, contributors) over a whole model. Used where no worker processes are
// (tributary aggregate, tests, replay); the daemon keeps the same parts in shared-memory slabs and its own books.
//
// Merge(a, b) equals accumulating the inputs of both into one (order changes fp64 results by rounding only, fixed point not at
// all). Borrows nothing. Errors: INVALID_ARGUMENT for wrong size, weight not finite or <= 0, non-finite payload, fixed-point
// range exceeded; ALREADY_EXISTS for an update id counted before. After an error the state is unchanged. Memory: the accumulators,
// and 24 bytes or so a contributor; no update is kept.
// Thread-compatible.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/reducer.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "common/update_codec.h"

namespace tributary::aggregator {

struct PartialInput {
  UpdateId id{};
  std::span<const std::byte> update;    // in the encoding; AccumulateElsewhere: none
  double weight = 0;
  std::optional<ScanResult> scan{};     // what ScanUpdate says of it, from who has asked already
  WeightRuns runs{};                    // UpdateView's
};

// Folds all of some updates that are not in this memory into `state`, with the bits of FoldBlock over it; false as FoldBlock's.
using FoldElsewhere = std::function<absl::StatusOr<bool>(std::span<std::byte> state, bool fresh)>;

class Partial {
 public:
  // `expected_updates` bounds one update's |w·x| in fixed point (FixedPointLimit).
  Partial(TensorLayout layout, Arithmetic arithmetic, int64_t expected_updates);
  // The same with a strategy's own reducer, which must use `arithmetic`, and for updates that come encoded.
  Partial(TensorLayout layout, std::unique_ptr<Reducer> reducer, Arithmetic arithmetic, int64_t expected_updates, const UpdateEncoding& encoding = {});

  // `update`: in the encoding.
  absl::Status Accumulate(const UpdateId& id, std::span<const std::byte> update, double weight);
  // The same as one after the other, bit for bit, but all or none; ranges of the model side by side with `for_each`.
  absl::Status AccumulateAll(std::span<const PartialInput> inputs, const ForEach& for_each = {});
  // The same of updates that `fold` has: plain ones of a layout without counters. Each input has its scan.
  absl::Status AccumulateElsewhere(std::span<const PartialInput> inputs, const FoldElsewhere& fold);
  absl::Status Merge(Partial&& other);

  double sum_weight() const;  // OrderFreeSum of the weights
  size_t count() const { return contributors_.size(); }
  const std::set<UpdateId>& contributors() const { return contributors_; }
  const TensorLayout& layout() const { return layout_; }
  const Reducer& reducer() const { return *reducer_; }
  std::span<const std::byte> state() const { return state_; }           // accumulators of the float region
  std::span<const int64_t> counters() const { return counters_; }

  // Everything, versioned; Restore refuses (INVALID_ARGUMENT) bytes that Save did not write for the same layout and arithmetic.
  std::string Save() const;
  absl::Status Restore(std::string_view saved);

 private:
  double SafeBound() const;  // sums below it cannot overflow
  absl::StatusOr<ScanResult> CheckInput(const PartialInput& input) const;
  // What all ways to accumulate share: fold(views, fresh) changes the state, and returns the first element of a block whose sums left the range.
  absl::Status AccumulateWith(std::span<const PartialInput> inputs,
                              const std::function<absl::StatusOr<std::optional<size_t>>(std::span<const UpdateView> views, bool fresh)>& fold);

  TensorLayout layout_;
  Arithmetic arithmetic_;
  int64_t expected_updates_;
  UpdateEncoding encoding_;
  std::unique_ptr<Reducer> reducer_;
  std::vector<std::byte> state_;
  std::vector<int64_t> counters_;
  std::vector<double> weights_;        // one per contributor
  double bound_ = 0;                   // Σ w·max|x|: no accumulator is larger
  std::set<UpdateId> contributors_;
};

}  // namespace tributary::aggregator
