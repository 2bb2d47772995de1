// Philox4x32-10: a counter-based random generator. A value depends on its key and its counter alone, so that chunk size, shards,
// threads and the processor (this header compiles for CUDA too) do not matter: value = f(seed, client, version, stage, element).
//
// Not for privacy noise of real jobs: whoever knows the seed knows the noise. See secure_random.h.
// Source: Salmon, Moraes, Dror, Shaw, SC 2011, "Parallel random numbers: as easy as 1, 2, 3"; the tests have Random123's known answers.
// Threads: pure.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TRIB_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: so a caller that is compiled for a processor with fused multiply-add uses it here too.
#define TRIB_HOST_DEVICE [[gnu::always_inline]] inline
#endif

namespace tributary {

struct PhiloxWords {
  uint32_t word[4];
};

inline constexpr int kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u;  // added to the key after each round
inline constexpr uint32_t kPhiloxKeyStep1 = 0xBB67AE85u;

TRIB_HOST_DEVICE PhiloxWords PhiloxRound(uint32_t key0, uint32_t key1, PhiloxWords counter) {
  const uint64_t left = uint64_t{0xD2511F53u} * counter.word[0];
  const uint64_t right = uint64_t{0xCD9E8D57u} * counter.word[2];
  return {{static_cast<uint32_t>(right >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(right),
           static_cast<uint32_t>(left >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(left)}};
}

TRIB_HOST_DEVICE PhiloxWords Philox4x32(uint32_t key0, uint32_t key1, PhiloxWords counter) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = PhiloxRound(key0, key1, counter);
    key0 += kPhiloxKeyStep0;
    key1 += kPhiloxKeyStep1;
  }
  return counter;
}

// What the random numbers are for; no two uses of one (seed, client, version) share any.
enum class RandomStage : uint32_t { kNoise = 1, kRounding = 2, kSelection = 3, kAdapter = 4 };

// The four words of elements 4·quad … 4·quad + 3. `client` is a number of the client (the server is 0); quad < 2^56.
struct PhiloxStream {
  uint64_t seed = 0;
  uint32_t client = 0;
  uint32_t version = 0;
  RandomStage stage = RandomStage::kNoise;

  TRIB_HOST_DEVICE PhiloxWords Quad(uint64_t quad) const {
    return Philox4x32(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                      {{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32) << 8 | static_cast<uint32_t>(stage), client, version}});
  }
};

}  // namespace tributary
