#include "common/digest.h"

#include <isa-l/crc.h>
#include <openssl/evp.h>
#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>  // AVX2 or AVX-512 where the processor has it
#endif

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace tributary {

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed) {
  // isa-l neither inverts on entry nor on exit, and takes an int length: both are done here.
  constexpr size_t kStep = size_t{1} << 30;
  uint32_t crc = ~seed;
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), kStep);
    // The library's prototype lacks const; it does not write.
    auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
    crc = crc32_iscsi(data, static_cast<int>(n), crc);
    bytes = bytes.subspan(n);
  }
  return ~crc;
}

struct Xxh3::State {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state{XXH3_createState()};
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) {
  TRIB_CHECK(state_->state != nullptr, "out of memory");
  XXH3_128bits_reset(state_->state.get());
}
Xxh3::~Xxh3() = default;
Xxh3::Xxh3(Xxh3&&) noexcept = default;
Xxh3& Xxh3::operator=(Xxh3&&) noexcept = default;

void Xxh3::Update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_->state.get(), bytes.data(), bytes.size());
}

namespace {
std::string CanonicalBytes(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  return std::string(reinterpret_cast<const char*>(canonical.digest), sizeof(canonical.digest));
}

std::string LowerHex(const unsigned char* bytes, size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(size * 2);
  for (size_t i = 0; i < size; ++i) {
    hex.push_back(kDigits[bytes[i] >> 4]);
    hex.push_back(kDigits[bytes[i] & 15]);
  }
  return hex;
}
}  // namespace

std::string Xxh3::Digest() const { return CanonicalBytes(XXH3_128bits_digest(state_->state.get())); }

std::string Xxh3Digest(std::span<const std::byte> bytes) {
  return CanonicalBytes(XXH3_128bits(bytes.data(), bytes.size()));
}

struct Sha256::State {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context{EVP_MD_CTX_new()};
  bool ended = false;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  TRIB_CHECK(state_->context != nullptr, "out of memory");
  TRIB_CHECK(EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) == 1, "OpenSSL has no SHA-256");
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::span<const std::byte> bytes) {
  TRIB_CHECK(!state_->ended, "Update after HexDigest");
  if (bytes.empty()) return;
  TRIB_CHECK(EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size()) == 1);
}

std::string Sha256::HexDigest() {
  TRIB_CHECK(!state_->ended, "HexDigest called twice");
  state_->ended = true;
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  TRIB_CHECK(EVP_DigestFinal_ex(state_->context.get(), digest, &size) == 1);
  return LowerHex(digest, size);
}

std::string Sha256Hex(std::span<const std::byte> bytes) {
  Sha256 sha;
  sha.Update(bytes);
  return sha.HexDigest();
}

}  // namespace tributary
