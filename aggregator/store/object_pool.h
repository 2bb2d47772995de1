// The shared-memory object store of one job: sealed memfd segments of equal slots, written once by ingress, read by workers.
//
// Bytes are drawn in LAYOUT.md; rules in dataplane.md §3: the writer maps, then seals (SHRINK|GROW|FUTURE_WRITE|SEAL), then the
// fd may travel; receivers check seals and size before they map. Segments are made on demand up to `pool_bytes` and dropped when
// the pool is destroyed. The pool keeps reference counts in private memory; readers never touch them.
//
// An object may have weight runs behind its payload: LAYOUT.md.
//
// Errors: RESOURCE_EXHAUSTED from Reserve when no slot is free (the caller answers with a retry delay; nothing is queued here).
// Threads: all methods of ObjectPool are safe from any thread; a WritableObject belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "common/abi/dataplane_abi.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

struct ObjectKey {
  uint64_t hi = 0;  // pool:16 | segment:16 | slot:32
  uint64_t lo = 0;  // nonce
  auto operator<=>(const ObjectKey&) const = default;
};

class ObjectPool;

// A reserved slot being written. Destroying it unpublished gives the slot back.
class WritableObject {
 public:
  WritableObject() = default;
  WritableObject(WritableObject&& other) noexcept;
  WritableObject& operator=(WritableObject&& other) noexcept;
  ~WritableObject();
  bool valid() const { return pool_ != nullptr; }
  std::span<std::byte> payload() const { return payload_; }
  // Weights of stretches of the payload's elements, written behind it. The pool has room for them (Options::weight_runs).
  void SetWeightRuns(std::span<const tb_weight_run> runs);
  tb_object_header& header() const { return *header_; }  // fill before Publish; magic, nonce, state are the pool's
  ObjectKey key() const { return key_; }

 private:
  friend class ObjectPool;
  ObjectPool* pool_ = nullptr;
  ObjectKey key_;
  tb_object_header* header_ = nullptr;
  std::span<std::byte> payload_;
};

class ObjectPool {
 public:
  struct Options {
    uint16_t pool_id = 0;
    size_t slot_payload_bytes = 0;   // > 0; every object of a job has this size
    size_t weight_runs = 0;          // that an object has at most
    size_t pool_bytes = 0;           // budget; at least one slot is always granted
    uint32_t domain = 0;
  };
  // Called (from Reserve's thread, without locks held) when a new segment exists: hand its fd to the workers. Reserve gives no object
  // away before its segment was told of, so several threads may tell of the same one at once, and more than once.
  using SegmentListener = std::function<void(uint16_t segment, int fd, size_t bytes)>;

  static absl::StatusOr<std::unique_ptr<ObjectPool>> Create(const Options& options);
  ~ObjectPool();

  // New listeners are told of the existing segments first. There is one listener; an empty function removes it. A call that was
  // already under way in another thread may still end after SetSegmentListener has returned.
  void SetSegmentListener(SegmentListener listener);

  // `bytes` <= slot_payload_bytes.
  absl::StatusOr<WritableObject> Reserve(size_t bytes);
  // WRITING -> PUBLISHED (release). The object then has one reference, the caller's.
  ObjectKey Publish(WritableObject&& object);
  // Drops the reference: PUBLISHED -> RETIRED -> FREE; the nonce changes, so stale keys die. A stale key is ignored.
  void Release(const ObjectKey& key);
  // Read access for the daemon itself (journalling, tests). NOT_FOUND for a stale key.
  absl::StatusOr<std::span<const std::byte>> Read(const ObjectKey& key) const;

  uint16_t pool_id() const;
  size_t slot_bytes() const;      // header + payload, page-rounded
  size_t capacity_slots() const;  // within the budget
  size_t used_slots() const;
  size_t committed_bytes() const; // of segments that exist

 private:
  friend class WritableObject;
  struct Impl;
  explicit ObjectPool(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The reading side, in a worker process.
class SegmentMap {
 public:
  SegmentMap();
  ~SegmentMap();
  // Checks seals and size, then maps read-only. INVALID_ARGUMENT / PERMISSION_DENIED when they differ from what is expected.
  absl::Status Add(uint16_t pool, uint16_t segment, UniqueFd fd, size_t announced_bytes, size_t slot_bytes);
  void Clear();
  // Copies and checks the header (magic, ABI, nonce, state, payload size). The payload span stays valid until Clear().
  // NOT_FOUND: unknown segment or stale key; DATA_LOSS: a header that lies.
  struct Object {
    tb_object_header header;
    std::span<const std::byte> payload;
    std::vector<tb_weight_run> runs;  // a copy
  };
  absl::StatusOr<Object> Find(const ObjectKey& key) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Where an object lies, from its external key, and back. Pure; checks nothing.
struct ObjectLocator {
  uint16_t pool = 0;
  uint16_t segment = 0;
  uint32_t slot = 0;
  bool operator==(const ObjectLocator&) const = default;
};
uint64_t PackLocator(const ObjectLocator& locator);
ObjectLocator UnpackLocator(uint64_t key_hi);
// Header, payload and weight runs, rounded up to whole pages.
size_t SlotBytes(size_t payload_bytes, size_t weight_runs = 0);
// Of an object's first weight run, from the payload's beginning.
constexpr size_t RunsOffset(size_t payload_bytes) { return (payload_bytes + alignof(tb_weight_run) - 1) / alignof(tb_weight_run) * alignof(tb_weight_run); }

// Creates a memfd of `bytes` with its pages reserved (RESOURCE_EXHAUSTED if there are none), maps it read-write, and seals
// SHRINK|GROW|SEAL. For lanes and slabs. The mapping is not inherited by forked children.
struct SharedRegion {
  UniqueFd fd;
  std::span<std::byte> bytes;
  SharedRegion() = default;
  SharedRegion(SharedRegion&& other) noexcept;
  SharedRegion& operator=(SharedRegion&& other) noexcept;
  ~SharedRegion();  // unmaps
  static absl::StatusOr<SharedRegion> Create(const char* name, size_t bytes);
  // Receiver: checks seals and size first.
  static absl::StatusOr<SharedRegion> Receive(UniqueFd fd, size_t announced_bytes);
  // A descriptor for a process that may only read: a map made through it cannot be made writable. See LAYOUT.md for what that is
  // worth against one that means harm.
  absl::StatusOr<UniqueFd> ReadOnlyFd() const;
};

// Such a descriptor at the receiver: mapped read-only, and closed.
struct ReadOnlyRegion {
  std::span<const std::byte> bytes;
  ReadOnlyRegion() = default;
  ReadOnlyRegion(ReadOnlyRegion&& other) noexcept;
  ReadOnlyRegion& operator=(ReadOnlyRegion&& other) noexcept;
  ~ReadOnlyRegion();  // unmaps
  // Checks seals, size, and that `fd` cannot write.
  static absl::StatusOr<ReadOnlyRegion> Receive(UniqueFd fd, size_t announced_bytes);
};

}  // namespace tributary::aggregator
