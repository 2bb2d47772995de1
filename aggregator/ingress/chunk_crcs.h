// CRC32Cs of chunks: joined, and remembered per served object.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tributary::aggregator {

// CRC32C of A followed by B, from those of A and B: so the object's CRC costs no second pass over its bytes.
// Source: zlib's crc32_combine (multiplication by x^(8·bytes) modulo the polynomial), with the Castagnoli polynomial.
uint32_t CombineCrc32c(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b);

// The chunk CRCs of one immutable object, each computed by whoever needs it first. Threads: safe; two threads may compute the same.
class ChunkCrcs {
 public:
  ChunkCrcs(size_t chunk_bytes, size_t total_bytes);
  // CRC of `object`'s bytes [offset, offset + bytes). Cached if that is exactly one aligned chunk (or the last one).
  uint32_t Of(std::span<const std::byte> object, size_t offset, size_t bytes);

 private:
  static constexpr uint64_t kKnown = uint64_t{1} << 32;
  const size_t chunk_bytes_;
  const size_t total_bytes_;
  std::vector<std::atomic<uint64_t>> known_;
};

// The last kEntries objects' CRCs, by hash and size: clients that fetch the same version share them. Holds no object. Threads: safe.
class ChunkCrcCache {
 public:
  explicit ChunkCrcCache(size_t chunk_bytes) : chunk_bytes_(chunk_bytes) {}
  // Shared: a fetch under way keeps its entry when the cache drops it.
  std::shared_ptr<ChunkCrcs> Get(const std::string& sha256, size_t total_bytes);

 private:
  static constexpr size_t kEntries = 64;
  const size_t chunk_bytes_;
  absl::Mutex mutex_;
  std::list<std::pair<std::string, std::shared_ptr<ChunkCrcs>>> entries_ ABSL_GUARDED_BY(mutex_);  // most recent first
};

}  // namespace tributary::aggregator
