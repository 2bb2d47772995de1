#include "aggregator/ingress/chunk_crcs.h"

#include <array>

#include "common/digest.h"

namespace tributary::aggregator {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // Castagnoli, reflected; bit 31 is x^0

// a · b modulo the polynomial. a != 0.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// [k] = x^(2^k) modulo the polynomial.
constexpr std::array<uint32_t, 64> MakePowers() {
  std::array<uint32_t, 64> powers{};
  uint32_t power = uint32_t{1} << 30;
  for (uint32_t& entry : powers) {
    entry = power;
    power = Multiply(power, power);
  }
  return powers;
}
constexpr std::array<uint32_t, 64> kPowers = MakePowers();

}  // namespace

uint32_t CombineCrc32c(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b) {
  uint32_t shift = uint32_t{1} << 31;  // x^(8·bytes_b)
  for (size_t k = 3; bytes_b != 0 && k < kPowers.size(); bytes_b >>= 1, ++k) {
    if ((bytes_b & 1) != 0) shift = Multiply(kPowers[k], shift);
  }
  return Multiply(shift, crc_a) ^ crc_b;
}

ChunkCrcs::ChunkCrcs(size_t chunk_bytes, size_t total_bytes)
    : chunk_bytes_(chunk_bytes), total_bytes_(total_bytes), known_((total_bytes + chunk_bytes - 1) / chunk_bytes) {}

uint32_t ChunkCrcs::Of(std::span<const std::byte> object, size_t offset, size_t bytes) {
  const bool whole = offset % chunk_bytes_ == 0 && (bytes == chunk_bytes_ || offset + bytes == total_bytes_) && bytes != 0;
  std::atomic<uint64_t>* const slot = whole ? &known_[offset / chunk_bytes_] : nullptr;
  // Relaxed: the value is the whole message, nothing else is read because of it.
  if (slot != nullptr) {
    if (const uint64_t value = slot->load(std::memory_order_relaxed); (value & kKnown) != 0) return static_cast<uint32_t>(value);
  }
  const uint32_t crc = Crc32c(object.subspan(offset, bytes));
  if (slot != nullptr) slot->store(kKnown | crc, std::memory_order_relaxed);
  return crc;
}

std::shared_ptr<ChunkCrcs> ChunkCrcCache::Get(const std::string& sha256, size_t total_bytes) {
  const std::string key = sha256 + ":" + std::to_string(total_bytes);
  absl::MutexLock lock(&mutex_);
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->first != key) continue;
    entries_.splice(entries_.begin(), entries_, it);
    return entries_.front().second;
  }
  entries_.emplace_front(key, std::make_shared<ChunkCrcs>(chunk_bytes_, total_bytes));
  if (entries_.size() > kEntries) entries_.pop_back();
  return entries_.front().second;
}

}  // namespace tributary::aggregator
