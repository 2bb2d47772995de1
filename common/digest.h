// Checksums and hashes, each from a kept library: CRC32C (isa-l), SHA-256 (OpenSSL), XXH3 (xxhash).
// CRC32C guards one chunk on the wire; XXH3-128 names an update's bytes; SHA-256 names a model version.
// Threads: functions are pure; the streaming classes are thread-compatible.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace tributary {

// CRC32C (Castagnoli, reflected, initial and final inversion), as in RFC 3720. Crc32c("123456789") == 0xE3069283.
// Pass the previous result as `seed` to continue over adjacent bytes.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

// 128-bit XXH3, streaming. Digest() may be called at any point; it is 16 bytes big-endian (canonical form).
class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  Xxh3(Xxh3&&) noexcept;
  Xxh3& operator=(Xxh3&&) noexcept;
  void Update(std::span<const std::byte> bytes);
  std::string Digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string Xxh3Digest(std::span<const std::byte> bytes);

// SHA-256, streaming. HexDigest() ends the stream: call it once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void Update(std::span<const std::byte> bytes);
  std::string HexDigest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string Sha256Hex(std::span<const std::byte> bytes);

}  // namespace tributary
