#include "aggregator/store/object_pool.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "aggregator/store/memfd.h"
#include "common/check.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kHeaderBytes = sizeof(tb_object_header);
// Small objects share a segment of about this size, so that a job has few fds to pass; large ones get a segment each.
constexpr size_t kSegmentTargetBytes = size_t{16} << 20;
constexpr size_t kMaxSegments = 65536;  // 16 bits of the key

size_t PageBytes() {
  static const size_t bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

// Counterpart: the acquire load in SegmentMap::Find. The release makes payload and header visible to a reader that sees the new state.
void StoreState(tb_object_header& header, uint32_t state) {
  std::atomic_ref<uint32_t>(header.state).store(state, std::memory_order_release);
}

uint64_t FreshNonce(uint64_t old) {
  uint64_t nonce = RandomU64();
  while (nonce == 0 || nonce == old) nonce = RandomU64();
  return nonce;
}

}  // namespace

uint64_t PackLocator(const ObjectLocator& locator) {
  return uint64_t{locator.pool} << 48 | uint64_t{locator.segment} << 32 | locator.slot;
}

ObjectLocator UnpackLocator(uint64_t key_hi) {
  return {static_cast<uint16_t>(key_hi >> 48), static_cast<uint16_t>(key_hi >> 32), static_cast<uint32_t>(key_hi)};
}

size_t SlotBytes(size_t payload_bytes, size_t weight_runs) {
  const size_t page = PageBytes();
  const size_t used = weight_runs == 0 ? payload_bytes : RunsOffset(payload_bytes) + weight_runs * sizeof(tb_weight_run);
  return (kHeaderBytes + used + page - 1) / page * page;
}

struct ObjectPool::Impl {
  struct Slot {
    uint64_t nonce = 0;  // private copy: the header is only ever written, never trusted
    uint32_t generation = 0;
    uint32_t state = TB_FREE;
    size_t payload_bytes = 0;
  };
  struct Segment {
    MappedMemfd memory;
    std::vector<Slot> slots;
    bool announced = false;  // the present listener has returned from being told of it
  };
  struct News {
    uint16_t number;
    int fd;
    size_t bytes;
  };

  Options options;
  size_t slot_bytes = 0;
  size_t capacity = 0;           // slots
  size_t slots_per_segment = 0;

  mutable absl::Mutex mutex;
  std::vector<std::unique_ptr<Segment>> segments ABSL_GUARDED_BY(mutex);
  std::vector<ObjectLocator> free ABSL_GUARDED_BY(mutex);  // last freed, first used: it is still in cache
  size_t granted ABSL_GUARDED_BY(mutex) = 0;               // slots that exist
  size_t used ABSL_GUARDED_BY(mutex) = 0;
  size_t committed ABSL_GUARDED_BY(mutex) = 0;
  std::shared_ptr<const SegmentListener> listener ABSL_GUARDED_BY(mutex);

  ~Impl() {
    absl::MutexLock lock(&mutex);
    for (auto& segment : segments) Unmap(segment->memory.bytes);
  }

  std::byte* SlotAddress(const ObjectLocator& at) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return segments[at.segment]->memory.bytes.data() + size_t{at.slot} * slot_bytes;
  }

  // The slot that `key` names now, or nullptr for a stale or foreign key.
  Slot* Find(const ObjectKey& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const ObjectLocator at = UnpackLocator(key.hi);
    if (at.pool != options.pool_id || at.segment >= segments.size()) return nullptr;
    Segment& segment = *segments[at.segment];
    if (at.slot >= segment.slots.size()) return nullptr;
    Slot& slot = segment.slots[at.slot];
    return key.lo != 0 && slot.nonce == key.lo ? &slot : nullptr;
  }

  absl::Status Grow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const size_t count = std::min(slots_per_segment, capacity - granted);
    TRIB_ASSIGN_OR_RETURN(MappedMemfd memory,
                          CreateSealedMemfd("tributary-objects", count * slot_bytes, DataSegmentSeals()));
    auto segment = std::make_unique<Segment>();
    segment->memory = std::move(memory);
    segment->slots.resize(count);
    const auto number = static_cast<uint16_t>(segments.size());
    segments.push_back(std::move(segment));
    granted += count;
    committed += count * slot_bytes;
    for (size_t i = count; i > 0; --i) free.push_back({options.pool_id, number, static_cast<uint32_t>(i - 1)});
    return absl::OkStatus();
  }

  News NewsOf(uint16_t number) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const MappedMemfd& memory = segments[number]->memory;
    return {number, memory.fd.get(), memory.bytes.size()};
  }

  void Announce(const std::shared_ptr<const SegmentListener>& to, const News& news) ABSL_LOCKS_EXCLUDED(mutex) {
    (*to)(news.number, news.fd, news.bytes);
    absl::MutexLock lock(&mutex);
    if (listener == to) segments[news.number]->announced = true;
  }

  void Free(Slot& slot, const ObjectKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const ObjectLocator at = UnpackLocator(key.hi);
    auto* header = reinterpret_cast<tb_object_header*>(SlotAddress(at));
    StoreState(*header, TB_RETIRED);
    // A new nonce at once, not at the next use: whoever still holds the key cannot find the object any more.
    slot.nonce = FreshNonce(slot.nonce);
    std::atomic_ref<uint64_t>(header->nonce).store(slot.nonce, std::memory_order_relaxed);
    slot.state = TB_FREE;
    StoreState(*header, TB_FREE);
    free.push_back(at);
    --used;
  }
};

ObjectPool::ObjectPool(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ObjectPool::~ObjectPool() = default;

absl::StatusOr<std::unique_ptr<ObjectPool>> ObjectPool::Create(const Options& options) {
  if (options.slot_payload_bytes == 0 || options.slot_payload_bytes > TensorLayout::kMaxBytes) {
    return InvalidArgument("object pool {}: expected a payload of 1 to {} bytes, got {}", options.pool_id,
                           TensorLayout::kMaxBytes, options.slot_payload_bytes);
  }
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->slot_bytes = SlotBytes(options.slot_payload_bytes, options.weight_runs);
  const size_t max_slots = kMaxSegments * size_t{0xffff};
  impl->capacity = std::clamp<size_t>(options.pool_bytes / impl->slot_bytes, 1, max_slots);
  impl->slots_per_segment = std::max<size_t>(1, kSegmentTargetBytes / impl->slot_bytes);
  impl->slots_per_segment = std::max(impl->slots_per_segment, (impl->capacity + kMaxSegments - 1) / kMaxSegments);
  return std::unique_ptr<ObjectPool>(new ObjectPool(std::move(impl)));
}

void ObjectPool::SetSegmentListener(SegmentListener listener) {
  std::vector<Impl::News> existing;
  std::shared_ptr<const SegmentListener> shared;
  if (listener) shared = std::make_shared<const SegmentListener>(std::move(listener));
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->listener = shared;
    for (size_t i = 0; i < impl_->segments.size(); ++i) {
      impl_->segments[i]->announced = false;
      existing.push_back(impl_->NewsOf(static_cast<uint16_t>(i)));
    }
  }
  if (!shared) return;
  for (const Impl::News& segment : existing) impl_->Announce(shared, segment);
}

absl::StatusOr<WritableObject> ObjectPool::Reserve(size_t bytes) {
  if (bytes > impl_->options.slot_payload_bytes) {
    return InvalidArgument("object pool {}: expected at most {} payload bytes, got {}", impl_->options.pool_id,
                           impl_->options.slot_payload_bytes, bytes);
  }
  WritableObject object;
  std::shared_ptr<const SegmentListener> listener;
  Impl::News news;
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->free.empty()) {
      if (impl_->granted >= impl_->capacity) {
        return ResourceExhausted("object pool {}: all {} slots of {} bytes are in use", impl_->options.pool_id,
                                 impl_->capacity, impl_->slot_bytes);
      }
      TRIB_RETURN_IF_ERROR(impl_->Grow());
    }
    const ObjectLocator at = impl_->free.back();
    impl_->free.pop_back();
    // Whoever made the segment may still be on its way to tell of it, and this object could be at a worker before that: tell, too.
    if (!impl_->segments[at.segment]->announced) {
      listener = impl_->listener;
      news = impl_->NewsOf(at.segment);
    }
    Impl::Slot& slot = impl_->segments[at.segment]->slots[at.slot];
    slot.nonce = FreshNonce(slot.nonce);
    slot.state = TB_WRITING;
    slot.payload_bytes = bytes;
    ++slot.generation;
    ++impl_->used;
    std::byte* address = impl_->SlotAddress(at);
    auto* header = reinterpret_cast<tb_object_header*>(address);
    // FREE -> WRITING before anything else changes: a reader with a stale key sees a state that is not PUBLISHED.
    StoreState(*header, TB_WRITING);
    header->magic = TB_OBJECT_MAGIC;
    header->abi_version = TB_ABI_VERSION;
    std::atomic_ref<uint64_t>(header->nonce).store(slot.nonce, std::memory_order_relaxed);
    header->generation = slot.generation;
    header->domain = impl_->options.domain;
    // The rest is the new owner's to fill; nothing of the previous object stays.
    std::memset(reinterpret_cast<std::byte*>(header) + offsetof(tb_object_header, owner_id), 0,
                kHeaderBytes - offsetof(tb_object_header, owner_id));
    header->payload_bytes = bytes;
    object.pool_ = this;
    object.key_ = {PackLocator(at), slot.nonce};
    object.header_ = header;
    object.payload_ = {address + kHeaderBytes, bytes};
  }
  if (listener) impl_->Announce(listener, news);
  return object;
}

void WritableObject::SetWeightRuns(std::span<const tb_weight_run> runs) {
  TRIB_CHECK(pool_ != nullptr && runs.size() <= pool_->impl_->options.weight_runs, "{} weight runs", runs.size());
  if (runs.empty()) return;
  std::memcpy(payload_.data() + RunsOffset(payload_.size()), runs.data(), runs.size_bytes());
  header_->weight_runs = runs.size();
}

ObjectKey ObjectPool::Publish(WritableObject&& object) {
  TRIB_CHECK(object.pool_ == this, "object of another pool published");
  const ObjectKey key = object.key_;
  tb_object_header& header = *object.header_;
  absl::MutexLock lock(&impl_->mutex);
  Impl::Slot* slot = impl_->Find(key);
  TRIB_CHECK(slot != nullptr && slot->state == TB_WRITING, "object published twice");
  header.magic = TB_OBJECT_MAGIC;
  header.abi_version = TB_ABI_VERSION;
  std::atomic_ref<uint64_t>(header.nonce).store(slot->nonce, std::memory_order_relaxed);
  header.generation = slot->generation;
  header.domain = impl_->options.domain;
  header.payload_bytes = slot->payload_bytes;
  slot->state = TB_PUBLISHED;
  StoreState(header, TB_PUBLISHED);
  object.pool_ = nullptr;
  return key;
}

void ObjectPool::Release(const ObjectKey& key) {
  absl::MutexLock lock(&impl_->mutex);
  Impl::Slot* slot = impl_->Find(key);
  if (slot != nullptr && slot->state != TB_FREE) impl_->Free(*slot, key);
}

absl::StatusOr<std::span<const std::byte>> ObjectPool::Read(const ObjectKey& key) const {
  absl::MutexLock lock(&impl_->mutex);
  Impl::Slot* slot = impl_->Find(key);
  if (slot == nullptr || slot->state != TB_PUBLISHED) {
    return NotFound("object pool {}: no published object with key {:016x}:{:016x}", impl_->options.pool_id, key.hi, key.lo);
  }
  return std::span<const std::byte>(impl_->SlotAddress(UnpackLocator(key.hi)) + kHeaderBytes, slot->payload_bytes);
}

uint16_t ObjectPool::pool_id() const { return impl_->options.pool_id; }
size_t ObjectPool::slot_bytes() const { return impl_->slot_bytes; }
size_t ObjectPool::capacity_slots() const { return impl_->capacity; }
size_t ObjectPool::used_slots() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->used;
}
size_t ObjectPool::committed_bytes() const {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->committed;
}

WritableObject::WritableObject(WritableObject&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), key_(other.key_), header_(other.header_), payload_(other.payload_) {}

WritableObject& WritableObject::operator=(WritableObject&& other) noexcept {
  if (this != &other) {
    if (pool_ != nullptr) pool_->Release(key_);
    pool_ = std::exchange(other.pool_, nullptr);
    key_ = other.key_;
    header_ = other.header_;
    payload_ = other.payload_;
  }
  return *this;
}

WritableObject::~WritableObject() {
  if (pool_ != nullptr) pool_->Release(key_);
}

}  // namespace tributary::aggregator
