// Folding batches of updates into a slab so that kill -9 at any instruction loses and repeats nothing.
//
// The record in tb_slab_header says at each moment what a replacement has to do; its steps and why each may be repeated are
// written there. Only the order of this process's stores matters: a killed process has executed a prefix of its program, and what
// it stored stays in the shared pages, so release stores with compiler barriers are enough (dataplane.md §8).
// Sums do not depend on how descriptors were cut into batches: the kernels add update by update.
//
// Borrows slab and reducer. Thread-compatible. Errors: DATA_LOSS from Recover for a record that contradicts itself.
#pragma once

#include <cstdint>
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
    bool under_way = false;           // a batch was cut short: pass its inputs to Resume
    uint32_t completed_cursor = 0;    // the lane's `done` is to be brought here
    uint32_t batch_done_cursor = 0;   // where the batch under way ends
    uint32_t batch_size = 0;
    tb_desc batch[TB_MAX_BATCH] = {};
    double batch_weight[TB_MAX_BATCH] = {};
  };
  // Call once after attaching: checks the record and restores a block that was cut in two.
  absl::StatusOr<Recovered> Recover();
  // Goes on with the batch under way; `inputs` are its updates in the recorded order.
  FoldResult Resume(std::span<const FoldInput> inputs);

  // 1 to TB_MAX_BATCH inputs; `done_cursor` is the lane's cursor once they are in.
  FoldResult Fold(std::span<const FoldInput> inputs, uint32_t done_cursor);
  // Nothing to fold up to `done_cursor`: all refused.
  void Skip(uint32_t done_cursor);

  uint32_t round() const { return slab_.header().round; }

 private:
  FoldResult Run(std::span<const FoldInput> inputs);

  Slab slab_;
  const Reducer* reducer_;
};

}  // namespace tributary::aggregator
