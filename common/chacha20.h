// The block function of ChaCha20 (RFC 8439 §2.3) with nonce 0, for GPU kernels; the processor uses OpenSSL's (random_words.h), and a test
// holds the two against each other. Threads: pure.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace tributary {

namespace chacha20_detail {

TRIB_HOST_DEVICE uint32_t RotateLeft(uint32_t x, int by) { return x << by | x >> (32 - by); }

TRIB_HOST_DEVICE void QuarterRound(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  a += b;
  d = RotateLeft(d ^ a, 16);
  c += d;
  b = RotateLeft(b ^ c, 12);
  a += b;
  d = RotateLeft(d ^ a, 8);
  c += d;
  b = RotateLeft(b ^ c, 7);
}

}  // namespace chacha20_detail

// `key`: 8 words, little-endian of the key's 32 bytes. `block`: the 16 words of that counter.
TRIB_HOST_DEVICE void ChaCha20Block(const uint32_t* key, uint32_t counter, uint32_t* block) {
  using chacha20_detail::QuarterRound;
  const uint32_t start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, key[0], key[1], key[2], key[3],
                              key[4],      key[5],      key[6],      key[7],      counter, 0u,    0u,     0u};
  for (int i = 0; i < 16; ++i) block[i] = start[i];
  for (int round = 0; round < 10; ++round) {
    QuarterRound(block[0], block[4], block[8], block[12]);
    QuarterRound(block[1], block[5], block[9], block[13]);
    QuarterRound(block[2], block[6], block[10], block[14]);
    QuarterRound(block[3], block[7], block[11], block[15]);
    QuarterRound(block[0], block[5], block[10], block[15]);
    QuarterRound(block[1], block[6], block[11], block[12]);
    QuarterRound(block[2], block[7], block[8], block[13]);
    QuarterRound(block[3], block[4], block[9], block[14]);
  }
  for (int i = 0; i < 16; ++i) block[i] += start[i];
}

}  // namespace tributary
