#include "aggregator/worker/slab_fold.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "common/check.h"
#include "common/crash_points.h"

namespace tributary::aggregator {
namespace {

// Neither the compiler nor a reader after our death sees this store before what precedes it, or after what follows.
// Counterpart: the acquire of a replacement that starts when the kernel has reported this process dead.
void StoreInOrder(uint32_t& word, uint32_t value) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::atomic_ref<uint32_t>(word).store(value, std::memory_order_release);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

}  // namespace

absl::StatusOr<SlabFold::Recovered> SlabFold::Recover() {
  tb_slab_header& shared = slab_.header();
  tb_slab_header record;
  std::memcpy(&record, &shared, sizeof(record));
  Recovered result;
  result.completed_cursor = record.completed_cursor;
  const uint32_t blocks = slab_.blocks();
  if (record.batch_size > TB_MAX_BATCH || record.blocks_done > blocks || record.undo_block > blocks ||
      (record.undo_block != 0 && record.undo_block != record.blocks_done && record.undo_block != record.blocks_done + 1)) {
    return DataLoss("slab record: batch of {}, {} of {} blocks done, undo block {}", record.batch_size, record.blocks_done, blocks,
                    record.undo_block);
  }
  if (record.batch_size == 0) return result;
  if (record.completed_cursor == record.batch_done_cursor) {  // committed; only the tidying is missing
    StoreInOrder(shared.batch_size, 0);
    return result;
  }
  if (record.undo_block == record.blocks_done + 1 && record.fresh == 0) {
    const size_t block_bytes = kBlockElements * size_t{slab_.shape().bytes_per_element};
    const size_t offset = record.blocks_done * block_bytes;
    std::memcpy(slab_.state() + offset, slab_.undo(), std::min(block_bytes, slab_.state_bytes() - offset));
  }
  StoreInOrder(shared.undo_block, 0);
  result.under_way = true;
  result.batch_done_cursor = record.batch_done_cursor;
  result.batch_size = record.batch_size;
  std::copy_n(record.batch, record.batch_size, result.batch);
  std::copy_n(record.batch_weight, record.batch_size, result.batch_weight);
  return result;
}

FoldResult SlabFold::Fold(std::span<const FoldInput> inputs, uint32_t done_cursor) {
  TRIB_CHECK(!inputs.empty() && inputs.size() <= TB_MAX_BATCH, "batch of {}", inputs.size());
  TRIB_CRASH_POINT(worker_before_fold);
  tb_slab_header& shared = slab_.header();
  for (size_t i = 0; i < inputs.size(); ++i) {
    shared.batch[i] = inputs[i].desc;
    shared.batch_weight[i] = inputs[i].view.weight;
  }
  shared.folded_after = shared.folded + inputs.size();
  StoreInOrder(shared.blocks_done, 0);
  StoreInOrder(shared.undo_block, 0);
  StoreInOrder(shared.batch_done_cursor, done_cursor);
  StoreInOrder(shared.batch_size, static_cast<uint32_t>(inputs.size()));
  return Run(inputs);
}

FoldResult SlabFold::Resume(std::span<const FoldInput> inputs) { return Run(inputs); }

FoldResult SlabFold::Run(std::span<const FoldInput> inputs) {
  tb_slab_header& shared = slab_.header();
  std::array<UpdateView, TB_MAX_BATCH> views;
  for (size_t i = 0; i < inputs.size(); ++i) views[i] = inputs[i].view;
  const std::span<const UpdateView> updates(views.data(), inputs.size());
  const SlabShape& shape = slab_.shape();
  const bool fresh = shared.fresh != 0;
  const uint32_t blocks = slab_.blocks();
  for (uint32_t block = shared.blocks_done; block < blocks; ++block) {
    const size_t first = size_t{block} * kBlockElements;
    const size_t count = std::min<size_t>(kBlockElements, shape.elements - first);
    const size_t bytes = count * shape.bytes_per_element;
    std::byte* state = slab_.state() + first * shape.bytes_per_element;
    if (!fresh) {
      std::memcpy(slab_.undo(), state, bytes);
      StoreInOrder(shared.undo_block, block + 1);
    }
    if (!reducer_->FoldBlock(state, shape.first_element + first, count, updates, fresh)) {
      if (!fresh) std::memcpy(state, slab_.undo(), bytes);
      if (block != 0) return FoldResult::kBroken;  // blocks before this one hold the batch already
      StoreInOrder(shared.undo_block, 0);
      StoreInOrder(shared.batch_size, 0);
      return FoldResult::kUnchanged;
    }
    TRIB_CRASH_POINT(worker_in_block);
    StoreInOrder(shared.blocks_done, block + 1);
    StoreInOrder(shared.undo_block, 0);
    TRIB_CRASH_POINT(worker_after_block);
  }
  // Repeatable: a maximum, or with `fresh` a first write followed by maxima.
  if (shape.counters != 0) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      FoldCounters(slab_.counters(), inputs[i].counters, shape.counters, shared.fresh != 0 && i == 0);
    }
  }
  StoreInOrder(shared.fresh, 0);
  shared.folded = shared.folded_after;
  StoreInOrder(shared.completed_cursor, shared.batch_done_cursor);
  StoreInOrder(shared.batch_size, 0);
  return FoldResult::kFolded;
}

void SlabFold::Skip(uint32_t done_cursor) { StoreInOrder(slab_.header().completed_cursor, done_cursor); }

}  // namespace tributary::aggregator
