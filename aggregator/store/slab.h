// The slab of one seat: accumulators of an element range, counters, one undo block and the record of the batch under way, in a
// SharedRegion that outlives the worker. The daemon formats and reads it, the worker folds into it, and where workers form a tree
// the parent reads the complete partial in place, through a PartialView. Bytes: LAYOUT.md, tb_slab_header; how a crash is repaired:
// aggregator/worker/slab_fold.h.
//
// A Slab borrows the region's bytes. Geometry is fixed at Format and copied at Attach: later changes in shared memory are not seen.
// Errors: INVALID_ARGUMENT for a size that overflows; DATA_LOSS from Attach for a header that lies. Thread-compatible; daemon and
// worker take turns: the daemon touches the slab only while nothing is queued for the worker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/abi/dataplane_abi.h"
#include "common/status.h"

namespace tributary::aggregator {

struct SlabShape {
  uint64_t first_element = 0;
  uint64_t elements = 0;
  uint32_t bytes_per_element = 0;
  uint32_t counters = 0;
  bool operator==(const SlabShape&) const = default;
};

// Of the whole region; INVALID_ARGUMENT when it cannot be represented.
absl::StatusOr<size_t> SlabBytes(const SlabShape& shape);

class Slab {
 public:
  Slab() = default;
  // Writes a fresh header into a region of SlabBytes(shape) bytes.
  static absl::StatusOr<Slab> Format(std::span<std::byte> region, const SlabShape& shape);
  // Checks that the region holds a slab of exactly `shape`.
  static absl::StatusOr<Slab> Attach(std::span<std::byte> region, const SlabShape& shape);

  // Begins a partial's life, under a new nonce. Empties the sums unless `keep_sums`. Nothing may be under way.
  void BeginLap(uint32_t round, uint32_t lap, bool keep_sums);

  // Gives the memory of undo block and sums back to the system: they read as zero from now on. For a slab in which nothing is wanted any
  // more before its next lap, and whose worker has no process.
  void DropSums();

  tb_slab_header& header() const { return *reinterpret_cast<tb_slab_header*>(region_.data()); }
  const SlabShape& shape() const { return shape_; }
  std::byte* state() const { return region_.data() + state_offset_; }
  std::byte* undo() const { return region_.data() + undo_offset_; }
  int64_t* counters() const { return reinterpret_cast<int64_t*>(region_.data() + counters_offset_); }
  size_t state_bytes() const { return static_cast<size_t>(shape_.elements) * shape_.bytes_per_element; }
  // Blocks of kBlockElements; the last may be short.
  uint32_t blocks() const;

 private:
  std::span<std::byte> region_;
  SlabShape shape_;
  size_t undo_offset_ = 0, state_offset_ = 0, counters_offset_ = 0;
};

// A child's slab in its parent's process, read-only. Borrows the region's bytes. Everything in it is untrusted: the header is copied
// and checked, the numbers in the sums are the reducer's to check.
class PartialView {
 public:
  PartialView() = default;
  // DATA_LOSS unless the region holds a slab of exactly `shape`.
  static absl::StatusOr<PartialView> Attach(std::span<const std::byte> region, const SlabShape& shape);
  // What is in the partial. NOT_FOUND unless it is the one of this nonce and complete.
  absl::StatusOr<tb_slab_totals> Find(uint32_t round, uint64_t nonce) const;
  const std::byte* state() const { return state_; }
  const std::byte* counters() const { return counters_; }  // i64 each

 private:
  std::span<const std::byte> region_;
  const std::byte* state_ = nullptr;
  const std::byte* counters_ = nullptr;
};

}  // namespace tributary::aggregator
