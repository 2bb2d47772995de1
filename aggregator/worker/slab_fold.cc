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
  result.merged = record.total.merged;
  const uint32_t blocks = slab_.blocks();
  if (record.batch_size > TB_MAX_BATCH || record.blocks_done > blocks || record.undo_block > blocks ||
      (record.undo_block != 0 && record.undo_block != record.blocks_done && record.undo_block != record.blocks_done + 1)) {
    return DataLoss("slab record: batch of {}, {} of {} blocks done, undo block {}", record.batch_size, record.blocks_done, blocks,
                    record.undo_block);
  }
  if (record.batch_size == 0) return result;
  if (record.completed_batch == record.batch_number) {  // committed; only the tidying is missing
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

SlabFold::State SlabFold::state() const {
  const tb_slab_header& shared = slab_.header();
  State state;
  state.round = shared.round;
  state.lap = shared.lap;
  state.nonce = shared.nonce;
  state.fresh = shared.fresh != 0;
  state.published = shared.lap != 0 && shared.published == shared.lap;
  state.completed_cursor = shared.completed_cursor;
  state.total = shared.total;
  state.busy_ns = shared.busy_ns;
  state.handled = shared.handled;
  return state;
}

// batch[] and batch_weight[] are written; batch_size makes the record count.
void SlabFold::BeginBatch(size_t size, uint32_t done_cursor, const tb_slab_totals& after) {
  tb_slab_header& shared = slab_.header();
  shared.total_after = after;
  StoreInOrder(shared.blocks_done, 0);
  StoreInOrder(shared.undo_block, 0);
  StoreInOrder(shared.batch_done_cursor, done_cursor);
  // Unequal to completed_batch from here on, which says nothing while batch_size is 0.
  StoreInOrder(shared.batch_number, shared.completed_batch + 1);
  StoreInOrder(shared.batch_size, static_cast<uint32_t>(size));
}

FoldResult SlabFold::Fold(std::span<const FoldInput> inputs, uint32_t done_cursor) {
  TRIB_CHECK(!inputs.empty() && inputs.size() <= TB_MAX_BATCH, "batch of {}", inputs.size());
  TRIB_CRASH_POINT(worker_before_fold);
  tb_slab_header& shared = slab_.header();
  tb_slab_totals after = shared.total;
  for (size_t i = 0; i < inputs.size(); ++i) {
    shared.batch[i] = inputs[i].desc;
    shared.batch_weight[i] = inputs[i].view.weight;
    after.folded += 1;
    after.weight += inputs[i].view.weight;
    after.digest += tb_mix(inputs[i].desc.key_lo);
  }
  BeginBatch(inputs.size(), done_cursor, after);
  return RunFold(inputs);
}

FoldResult SlabFold::Merge(std::span<const MergeInput> inputs) {
  TRIB_CHECK(!inputs.empty() && inputs.size() <= TB_MAX_BATCH, "batch of {}", inputs.size());
  TRIB_CRASH_POINT(worker_before_merge);
  tb_slab_header& shared = slab_.header();
  tb_slab_totals after = shared.total;
  for (size_t i = 0; i < inputs.size(); ++i) {
    TRIB_CHECK(inputs[i].child < TB_MAX_CHILDREN, "child {}", inputs[i].child);
    const uint64_t bit = uint64_t{1} << inputs[i].child;
    TRIB_CHECK((after.merged & bit) == 0, "child {} merged twice", inputs[i].child);
    shared.batch[i] = inputs[i].desc;
    shared.batch_weight[i] = inputs[i].totals.weight;
    after.folded += inputs[i].totals.folded;
    after.weight += inputs[i].totals.weight;
    after.digest += inputs[i].totals.digest;
    after.merged |= bit;
  }
  BeginBatch(inputs.size(), shared.completed_cursor, after);
  return RunMerge(inputs);
}

FoldResult SlabFold::RunFold(std::span<const FoldInput> inputs) {
  std::array<UpdateView, TB_MAX_BATCH> views;
  for (size_t i = 0; i < inputs.size(); ++i) views[i] = inputs[i].view;
  const std::span<const UpdateView> updates(views.data(), inputs.size());
  const uint64_t first_element = slab_.shape().first_element;
  return Run(
      [&](std::byte* state, size_t first, size_t count, bool fresh) {
        if (!reducer_->FoldBlock(state, first_element + first, count, updates, fresh)) return false;
        TRIB_CRASH_POINT(worker_in_block);
        return true;
      },
      [&](bool fresh) {
        for (size_t i = 0; i < inputs.size(); ++i) {
          FoldCounters(slab_.counters(), inputs[i].counters, slab_.shape().counters, fresh && i == 0);
        }
      });
}

FoldResult SlabFold::RunMerge(std::span<const MergeInput> inputs) {
  const size_t element_bytes = slab_.shape().bytes_per_element;
  return Run(
      [&](std::byte* state, size_t first, size_t count, bool fresh) {
        for (size_t i = 0; i < inputs.size(); ++i) {
          const std::byte* other = inputs[i].state + first * element_bytes;
          if (fresh && i == 0) {
            std::memcpy(state, other, count * element_bytes);
          } else if (!reducer_->MergeBlock(state, other, count)) {
            return false;
          }
        }
        TRIB_CRASH_POINT(worker_in_merge_block);
        return true;
      },
      [&](bool fresh) {
        for (size_t i = 0; i < inputs.size(); ++i) {
          FoldCounters(slab_.counters(), inputs[i].counters, slab_.shape().counters, fresh && i == 0);
        }
      });
}

// `change(state, first, count, fresh)` brings the batch into elements [first, first + count) of this slab; `counters(fresh)` into
// the counters, and may be called again for the same batch.
template <typename Block, typename Counters>
FoldResult SlabFold::Run(const Block& change, const Counters& counters) {
  tb_slab_header& shared = slab_.header();
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
    if (!change(state, first, count, fresh)) {
      if (!fresh) std::memcpy(state, slab_.undo(), bytes);
      if (block != 0) return FoldResult::kBroken;  // blocks before this one hold the batch already
      StoreInOrder(shared.undo_block, 0);
      StoreInOrder(shared.batch_size, 0);
      return FoldResult::kUnchanged;
    }
    StoreInOrder(shared.blocks_done, block + 1);
    StoreInOrder(shared.undo_block, 0);
    TRIB_CRASH_POINT(worker_after_block);
  }
  // Repeatable: a maximum, or with `fresh` a first write followed by maxima.
  if (shape.counters != 0) counters(shared.fresh != 0);
  StoreInOrder(shared.fresh, 0);
  shared.total = shared.total_after;
  StoreInOrder(shared.completed_cursor, shared.batch_done_cursor);
  StoreInOrder(shared.completed_batch, shared.batch_number);
  StoreInOrder(shared.batch_size, 0);
  return FoldResult::kFolded;
}

void SlabFold::Skip(uint32_t done_cursor) { StoreInOrder(slab_.header().completed_cursor, done_cursor); }

// The caller's lap, not the slab's: if the daemon has begun another one meanwhile, this must not count for it.
void SlabFold::Publish(uint32_t lap) { StoreInOrder(slab_.header().published, lap); }
void SlabFold::Withdraw() { StoreInOrder(slab_.header().published, 0); }

void SlabFold::CountTime(uint64_t busy_ns, uint64_t handled) {
  tb_slab_header& shared = slab_.header();
  // A mean over the last thousand or two: what was once slow is forgotten.
  constexpr uint64_t kMemory = 1024;
  if (shared.handled >= kMemory) {
    shared.busy_ns /= 2;
    shared.handled /= 2;
  }
  shared.busy_ns += busy_ns;
  shared.handled += handled;
}

}  // namespace tributary::aggregator
