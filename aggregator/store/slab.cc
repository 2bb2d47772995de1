#include "aggregator/store/slab.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "aggregator/core/kernels.h"
#include "common/ids.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kLine = 64;
constexpr uint64_t kMaxElements = uint64_t{1} << 40;

struct Offsets {
  size_t undo = 0, state = 0, counters = 0, total = 0;
};

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

absl::StatusOr<Offsets> Place(const SlabShape& shape) {
  if (shape.elements > kMaxElements || shape.first_element > kMaxElements || shape.bytes_per_element == 0 ||
      shape.bytes_per_element > 64) {
    return InvalidArgument("slab: expected up to 2^40 elements of 1 to 64 bytes, got {} of {} from {}", shape.elements,
                           shape.bytes_per_element, shape.first_element);
  }
  Offsets offsets;
  offsets.undo = kPage;
  const size_t block = std::min<size_t>(shape.elements, kBlockElements) * shape.bytes_per_element;
  offsets.state = offsets.undo + RoundUp(block, kPage);
  offsets.counters = offsets.state + RoundUp(static_cast<size_t>(shape.elements) * shape.bytes_per_element, kLine);
  offsets.total = RoundUp(offsets.counters + size_t{shape.counters} * sizeof(int64_t), kPage);
  return offsets;
}

// DATA_LOSS unless `region` begins with the header of a slab of exactly `shape`.
absl::StatusOr<Offsets> CheckHeader(std::span<const std::byte> region, const SlabShape& shape) {
  TRIB_ASSIGN_OR_RETURN(const Offsets offsets, Place(shape));
  if (region.size() != offsets.total) return DataLoss("slab: expected {} bytes, got {}", offsets.total, region.size());
  tb_slab_header header;
  std::memcpy(&header, region.data(), sizeof(header));
  if (header.magic != TB_SLAB_MAGIC || header.abi_version != TB_ABI_VERSION) {
    return DataLoss("slab: expected magic {:#x} version {}, got {:#x} version {}", TB_SLAB_MAGIC, TB_ABI_VERSION, header.magic,
                    header.abi_version);
  }
  const SlabShape got{header.first_element, header.elements, header.bytes_per_element, header.counters};
  if (got != shape || header.undo_offset != offsets.undo || header.state_offset != offsets.state ||
      header.counters_offset != offsets.counters || header.total_bytes != offsets.total) {
    return DataLoss("slab: expected {} elements of {} bytes from {}, got a header for {} of {} from {}", shape.elements,
                    shape.bytes_per_element, shape.first_element, got.elements, got.bytes_per_element, got.first_element);
  }
  return offsets;
}

}  // namespace

absl::StatusOr<size_t> SlabBytes(const SlabShape& shape) {
  TRIB_ASSIGN_OR_RETURN(const Offsets offsets, Place(shape));
  return offsets.total;
}

absl::StatusOr<Slab> Slab::Format(std::span<std::byte> region, const SlabShape& shape) {
  TRIB_ASSIGN_OR_RETURN(const Offsets offsets, Place(shape));
  if (region.size() != offsets.total) return InvalidArgument("slab: expected {} bytes, got {}", offsets.total, region.size());
  Slab slab;
  slab.region_ = region;
  slab.shape_ = shape;
  slab.undo_offset_ = offsets.undo;
  slab.state_offset_ = offsets.state;
  slab.counters_offset_ = offsets.counters;
  tb_slab_header header{};
  header.magic = TB_SLAB_MAGIC;
  header.abi_version = TB_ABI_VERSION;
  header.first_element = shape.first_element;
  header.elements = shape.elements;
  header.bytes_per_element = shape.bytes_per_element;
  header.counters = shape.counters;
  header.undo_offset = offsets.undo;
  header.state_offset = offsets.state;
  header.counters_offset = offsets.counters;
  header.total_bytes = offsets.total;
  header.fresh = 1;
  std::memcpy(region.data(), &header, sizeof(header));
  return slab;
}

absl::StatusOr<Slab> Slab::Attach(std::span<std::byte> region, const SlabShape& shape) {
  TRIB_ASSIGN_OR_RETURN(const Offsets offsets, CheckHeader(region, shape));
  Slab slab;
  slab.region_ = region;
  slab.shape_ = shape;
  slab.undo_offset_ = offsets.undo;
  slab.state_offset_ = offsets.state;
  slab.counters_offset_ = offsets.counters;
  return slab;
}

void Slab::BeginLap(uint32_t round, uint32_t lap, bool keep_sums) {
  tb_slab_header& shared = header();
  shared.round = round;
  shared.lap = lap;
  shared.published = 0;
  shared.total.merged = 0;
  const uint64_t old = shared.nonce;
  while (shared.nonce == 0 || shared.nonce == old) shared.nonce = RandomU64();
  if (keep_sums) return;
  shared.total = {};
  shared.fresh = 1;
}

void Slab::DropSums() {
  const size_t first = (undo_offset_ + kPage - 1) / kPage * kPage;
  const size_t last = (state_offset_ + state_bytes()) / kPage * kPage;
  // Where it is refused the memory stays in use: nothing depends on it.
  if (last > first) ::madvise(region_.data() + first, last - first, MADV_REMOVE);
}

uint32_t Slab::blocks() const {
  return static_cast<uint32_t>((shape_.elements + kBlockElements - 1) / kBlockElements);
}

absl::StatusOr<PartialView> PartialView::Attach(std::span<const std::byte> region, const SlabShape& shape) {
  TRIB_ASSIGN_OR_RETURN(const Offsets offsets, CheckHeader(region, shape));
  PartialView view;
  view.region_ = region;
  view.state_ = region.data() + offsets.state;
  view.counters_ = region.data() + offsets.counters;
  return view;
}

absl::StatusOr<tb_slab_totals> PartialView::Find(uint32_t round, uint64_t nonce) const {
  tb_slab_header header;
  std::memcpy(&header, region_.data(), sizeof(header));
  // The descriptor came through a lane after the leaf had stopped writing: what is copied here is at rest, or a lie.
  if (header.round != round || header.nonce != nonce || header.published != header.lap || header.lap == 0) {
    return NotFound("partial {:016x} of round {}: the slab holds {:016x} of round {}, lap {}, published {}", nonce, round,
                    header.nonce, header.round, header.lap, header.published);
  }
  if (header.fresh != 0 || header.batch_size != 0 || !std::isfinite(header.total.weight) || header.total.weight < 0) {
    return DataLoss("partial {:016x}: expected sums at rest, got fresh {}, a batch of {}, weight {}", nonce, header.fresh,
                    header.batch_size, header.total.weight);
  }
  return header.total;
}

}  // namespace tributary::aggregator
