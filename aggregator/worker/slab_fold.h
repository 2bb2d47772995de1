// Folding batches of updates, and merging partials, into a slab so that kill -9 at any instruction loses and repeats nothing.
//
// The record in tb_slab_header says at each moment what a replacement has to do; its steps and why each may be repeated are
// written there. Only the order of this process's stores matters: a killed process has executed a prefix of its program, and what
// it stored stays in the shared pages, so release stores with compiler barriers are enough (dataplane.md §8).
// Sums of updates do not depend on how descriptors were cut into batches: the kernels add update by update. Partials are added with
// factor 1, block by block; the first one into an empty slab is copied.
//
// Borrows slab and reducer. Thread-compatible. Errors: DATA_LOSS from Recover for a record that contradicts itself.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "aggregator/core/reducer.h"
#include "aggregator/store/slab.h"
#include "common/abi/dataplane_abi.h"
#include "common/status.h"

namespace tributary::aggregator {

struct FoldInput {
  tb_desc desc{};
  UpdateView view;                        // whole update, flat form
  const std::byte* counters = nullptr;    // of the update; nullptr when this slab has none
  std::shared_ptr<const WeightRuns> runs{};  // what view.runs borrows: shared, as inputs are copied
};

struct MergeInput {
  tb_desc desc{};
  uint32_t child = 0;                     // < TB_MAX_CHILDREN
  const std::byte* state = nullptr;       // of this slab's shape
  const std::byte* counters = nullptr;
  tb_slab_totals totals{};                // what is in it
};

enum class FoldResult {
  kFolded,
  kUnchanged,  // not finite or out of range in the first block: the slab is as before
  kBroken,     // the same in a later block: the sums of this slab can no longer be trusted
};

class SlabFold {
 public:
  SlabFold(Slab slab, const Reducer* reducer) : slab_(slab), reducer_(reducer) {}

  struct Recovered {
    bool under_way = false;           // a batch was cut short: pass its inputs to ResumeFold or ResumeMerge, by the kind of batch[0]
    uint32_t completed_cursor = 0;    // the lane's `done` is to be brought here
    uint32_t batch_done_cursor = 0;   // where the batch under way ends
    uint64_t merged = 0;              // children of this lap whose lanes are to be released
    uint32_t batch_size = 0;
    tb_desc batch[TB_MAX_BATCH] = {};
    double batch_weight[TB_MAX_BATCH] = {};
  };
  // Call once after attaching: checks the record and restores a block that was cut in two.
  absl::StatusOr<Recovered> Recover();
  // Go on with the batch under way; `inputs` are its members in the recorded order.
  FoldResult ResumeFold(std::span<const FoldInput> inputs) { return RunFold(inputs); }
  FoldResult ResumeMerge(std::span<const MergeInput> inputs) { return RunMerge(inputs); }

  // 1 to TB_MAX_BATCH inputs; `done_cursor` is the lane's cursor once they are in.
  FoldResult Fold(std::span<const FoldInput> inputs, uint32_t done_cursor);
  // Nothing to fold up to `done_cursor`: all refused.
  void Skip(uint32_t done_cursor);
  // 1 to TB_MAX_BATCH partials of different children, none merged in this lap before.
  FoldResult Merge(std::span<const MergeInput> inputs);
  // The sums of `lap` are complete and stay as they are until the next one, or until Withdraw: the seat goes on as a parent.
  void Publish(uint32_t lap);
  void Withdraw();
  // For E, the mean execution time: `handled` updates or partials took `busy_ns`. A crash may lose some.
  void CountTime(uint64_t busy_ns, uint64_t handled);

  // A copy of what the daemon and we have written; no fields of a batch.
  struct State {
    uint32_t round = 0, lap = 0;
    uint64_t nonce = 0;
    bool fresh = false, published = false;
    uint32_t completed_cursor = 0;
    tb_slab_totals total{};
    uint64_t busy_ns = 0, handled = 0;
  };
  State state() const;
  uint32_t round() const { return slab_.header().round; }

 private:
  void BeginBatch(size_t size, uint32_t done_cursor, const tb_slab_totals& after);
  FoldResult RunFold(std::span<const FoldInput> inputs);
  FoldResult RunMerge(std::span<const MergeInput> inputs);
  template <typename Block, typename Counters>
  FoldResult Run(const Block& change, const Counters& counters);

  Slab slab_;
  const Reducer* reducer_;
};

}  // namespace tributary::aggregator
