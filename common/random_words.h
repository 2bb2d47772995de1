// Where noise takes its words from: four 32-bit words for each quad of elements, by the quad's number alone, so that the order and the
// size of the pieces they are asked for do not matter.
// PhiloxSource: reproducible, from a run's seed. ChaChaSource: ChaCha20 (RFC 8439) under a key of 32 secret bytes: what real privacy
// noise needs; word order little-endian, quad q is the q mod 4-th quarter of block q / 4. At most 2^34 elements a source (its 32-bit
// block counter).
// SecretKey() asks the operating system by way of OpenSSL. Errors: INTERNAL if it or OpenSSL cannot. Threads: thread-compatible.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "common/philox.h"
#include "common/status.h"

namespace tributary {

class RandomWords {
 public:
  virtual ~RandomWords() = default;
  // quads[i] of first + i.
  virtual void Fill(uint64_t first, std::span<PhiloxWords> quads) = 0;
};

std::unique_ptr<RandomWords> MakePhiloxSource(const PhiloxStream& stream);

using ChaChaKey = std::array<std::byte, 32>;
std::unique_ptr<RandomWords> MakeChaChaSource(const ChaChaKey& key);
absl::StatusOr<ChaChaKey> SecretKey();

// A client's number in counters and draws: 32 bits of XXH3 of its id, never 0 (the server's). Two clients in a million share one in a
// thousand jobs; they then round alike, nothing else.
uint32_t ClientNumber(std::string_view client);

// values[i] += stddev · normal(first + i), in one fused step in the values' precision (normal.h has normals of both): element numbers, so any
// split of a vector into pieces gives the same sums.
void AddNormals(RandomWords& words, uint64_t first, double stddev, std::span<float> values);
void AddNormals(RandomWords& words, uint64_t first, double stddev, std::span<double> values);

}  // namespace tributary
