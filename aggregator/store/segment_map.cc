// The reading side: SegmentMap, and the shared regions of lanes and slabs. Contracts: object_pool.h.
#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>

#include "aggregator/store/memfd.h"
#include "aggregator/store/object_pool.h"

namespace tributary::aggregator {

struct SegmentMap::Impl {
  struct Segment {
    std::span<const std::byte> bytes;
    size_t slot_bytes = 0;
  };
  std::map<uint32_t, Segment> segments;  // by pool << 16 | segment
  ~Impl() { Clear(); }
  void Clear() {
    for (auto& [number, segment] : segments) Unmap(segment.bytes);
    segments.clear();
  }
};

SegmentMap::SegmentMap() : impl_(std::make_unique<Impl>()) {}
SegmentMap::~SegmentMap() = default;
void SegmentMap::Clear() { impl_->Clear(); }

absl::Status SegmentMap::Add(uint16_t pool, uint16_t segment, UniqueFd fd, size_t announced_bytes, size_t slot_bytes) {
  TRIB_RETURN_IF_ERROR(Annotate(CheckSealed(fd.get(), announced_bytes, DataSegmentSeals()),
                                fmt::format("segment {} of pool {}", segment, pool)));
  if (slot_bytes <= sizeof(tb_object_header) || slot_bytes != SlotBytes(slot_bytes - sizeof(tb_object_header)) ||
      announced_bytes % slot_bytes != 0) {
    return InvalidArgument("segment {} of pool {}: expected whole slots of page-rounded size, got {} bytes in slots of {}",
                           segment, pool, announced_bytes, slot_bytes);
  }
  const uint32_t number = uint32_t{pool} << 16 | segment;
  if (impl_->segments.contains(number)) return AlreadyExists("segment {} of pool {}: announced twice", segment, pool);
  TRIB_ASSIGN_OR_RETURN(std::span<std::byte> bytes, MapShared(fd.get(), announced_bytes, /*writable=*/false));
  // The mapping keeps the memory; the fd is closed on return, so a worker holds none per segment.
  impl_->segments[number] = {bytes, slot_bytes};
  return absl::OkStatus();
}

absl::StatusOr<SegmentMap::Object> SegmentMap::Find(const ObjectKey& key) const {
  const ObjectLocator at = UnpackLocator(key.hi);
  const auto found = impl_->segments.find(uint32_t{at.pool} << 16 | at.segment);
  if (found == impl_->segments.end()) return NotFound("segment {} of pool {} is not mapped", at.segment, at.pool);
  const auto& segment = found->second;
  if (at.slot >= segment.bytes.size() / segment.slot_bytes) {
    return NotFound("segment {} of pool {}: expected a slot below {}, got {}", at.segment, at.pool,
                    segment.bytes.size() / segment.slot_bytes, at.slot);
  }
  const std::byte* address = segment.bytes.data() + size_t{at.slot} * segment.slot_bytes;
  auto* shared = reinterpret_cast<tb_object_header*>(const_cast<std::byte*>(address));
  // Counterpart: ObjectPool's release store of the state. Then one copy, and only the copy is looked at.
  const uint32_t state = std::atomic_ref<uint32_t>(shared->state).load(std::memory_order_acquire);
  const uint64_t nonce = std::atomic_ref<uint64_t>(shared->nonce).load(std::memory_order_relaxed);
  if (state != TB_PUBLISHED || nonce != key.lo) {
    return NotFound("object {:016x}:{:016x}: no published object has this key (state {})", key.hi, key.lo, state);
  }
  Object object;
  std::memcpy(&object.header, shared, sizeof(object.header));
  const tb_object_header& header = object.header;
  if (header.magic != TB_OBJECT_MAGIC || header.abi_version != TB_ABI_VERSION) {
    return DataLoss("object {:016x}: expected magic {:#x} version {}, got {:#x} version {}", key.hi, TB_OBJECT_MAGIC,
                    TB_ABI_VERSION, header.magic, header.abi_version);
  }
  if (header.state != TB_PUBLISHED || header.nonce != key.lo) return NotFound("object {:016x}: retired while it was read", key.hi);
  if (header.payload_bytes > segment.slot_bytes - sizeof(tb_object_header)) {
    return DataLoss("object {:016x}: expected at most {} payload bytes, got {}", key.hi,
                    segment.slot_bytes - sizeof(tb_object_header), header.payload_bytes);
  }
  object.payload = {address + sizeof(tb_object_header), static_cast<size_t>(header.payload_bytes)};
  if (header.weight_runs == 0) return object;
  const size_t behind = sizeof(tb_object_header) + RunsOffset(object.payload.size());
  if (behind > segment.slot_bytes || header.weight_runs > (segment.slot_bytes - behind) / sizeof(tb_weight_run)) {
    return DataLoss("object {:016x}: expected at most {} weight runs, got {}", key.hi, behind > segment.slot_bytes ? 0 : (segment.slot_bytes - behind) / sizeof(tb_weight_run),
                    header.weight_runs);
  }
  object.runs.resize(static_cast<size_t>(header.weight_runs));
  std::memcpy(object.runs.data(), address + behind, object.runs.size() * sizeof(tb_weight_run));
  return object;
}

SharedRegion::SharedRegion(SharedRegion&& other) noexcept
    : fd(std::move(other.fd)), bytes(std::exchange(other.bytes, std::span<std::byte>())) {}

SharedRegion& SharedRegion::operator=(SharedRegion&& other) noexcept {
  if (this != &other) {
    Unmap(bytes);
    fd = std::move(other.fd);
    bytes = std::exchange(other.bytes, std::span<std::byte>());
  }
  return *this;
}

SharedRegion::~SharedRegion() { Unmap(bytes); }

absl::StatusOr<SharedRegion> SharedRegion::Create(const char* name, size_t bytes) {
  TRIB_ASSIGN_OR_RETURN(MappedMemfd memory, CreateSealedMemfd(name, bytes, SharedRegionSeals()));
  SharedRegion region;
  region.fd = std::move(memory.fd);
  region.bytes = memory.bytes;
  return region;
}

absl::StatusOr<SharedRegion> SharedRegion::Receive(UniqueFd fd, size_t announced_bytes) {
  TRIB_RETURN_IF_ERROR(CheckSealed(fd.get(), announced_bytes, SharedRegionSeals()));
  SharedRegion region;
  TRIB_ASSIGN_OR_RETURN(region.bytes, MapShared(fd.get(), announced_bytes, /*writable=*/true));
  region.fd = std::move(fd);
  return region;
}

absl::StatusOr<UniqueFd> SharedRegion::ReadOnlyFd() const {
  UniqueFd reader(::open(fmt::format("/proc/self/fd/{}", fd.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader.valid()) return ErrnoStatus(errno, "shared region: open for reading");
  return reader;
}

ReadOnlyRegion::ReadOnlyRegion(ReadOnlyRegion&& other) noexcept : bytes(std::exchange(other.bytes, std::span<const std::byte>())) {}

ReadOnlyRegion& ReadOnlyRegion::operator=(ReadOnlyRegion&& other) noexcept {
  if (this != &other) {
    Unmap(bytes);
    bytes = std::exchange(other.bytes, std::span<const std::byte>());
  }
  return *this;
}

ReadOnlyRegion::~ReadOnlyRegion() { Unmap(bytes); }

absl::StatusOr<ReadOnlyRegion> ReadOnlyRegion::Receive(UniqueFd fd, size_t announced_bytes) {
  TRIB_RETURN_IF_ERROR(CheckSealed(fd.get(), announced_bytes, SharedRegionSeals()));
  if ((::fcntl(fd.get(), F_GETFL) & O_ACCMODE) != O_RDONLY) return PermissionDenied("received memfd: expected one that can only be read");
  ReadOnlyRegion region;
  TRIB_ASSIGN_OR_RETURN(region.bytes, MapShared(fd.get(), announced_bytes, /*writable=*/false));
  return region;
}

}  // namespace tributary::aggregator
