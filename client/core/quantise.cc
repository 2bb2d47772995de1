#include "client/core/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace tributary::client {
namespace {

constexpr size_t kWords = kQuantBlock / 2;  // each serves two elements
constexpr size_t kQuads = kWords / 4;

// Words of the quads from `quad` on, four in a row for each: Philox4x32-10 with the quads side by side, so that a compiler uses vectors.
[[gnu::always_inline]] inline void Words(const PhiloxStream& stream, uint64_t quad, uint32_t* words) {
  uint32_t w0[kQuads], w1[kQuads], w2[kQuads], w3[kQuads];
  for (size_t q = 0; q < kQuads; ++q) {
    w0[q] = static_cast<uint32_t>(quad + q);
    w1[q] = static_cast<uint32_t>((quad + q) >> 32) << 8 | static_cast<uint32_t>(stream.stage);
    w2[q] = stream.client;
    w3[q] = stream.version;
  }
  auto key0 = static_cast<uint32_t>(stream.seed), key1 = static_cast<uint32_t>(stream.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (size_t q = 0; q < kQuads; ++q) {
      const PhiloxWords next = PhiloxRound(key0, key1, {{w0[q], w1[q], w2[q], w3[q]}});
      w0[q] = next.word[0];
      w1[q] = next.word[1];
      w2[q] = next.word[2];
      w3[q] = next.word[3];
    }
    key0 += kPhiloxKeyStep0;
    key1 += kPhiloxKeyStep1;
  }
  for (size_t q = 0; q < kQuads; ++q) {
    words[4 * q] = w0[q];
    words[4 * q + 1] = w1[q];
    words[4 * q + 2] = w2[q];
    words[4 * q + 3] = w3[q];
  }
}

// 1 + u, u = (2h + 1)·2^−17 for the 16 bits h from bit 7 on: exact.
[[gnu::always_inline]] inline float OneAnd(uint32_t bits) {
  const uint32_t one_and = (bits & 0x7FFF80u) | 0x3F800040u;
  float value;
  std::memcpy(&value, &one_and, sizeof(value));
  return value;
}

// levels / largest rounded toward 0, so that no magnitude up to the largest times it is above the levels. Finite: where the quotient is not, it
// is the largest number.
float FactorOf(float largest, int levels) {
  const auto limit = static_cast<float>(levels);
  const float nearest = limit / largest;
  return std::fma(nearest, largest, -limit) > 0 ? std::nextafter(nearest, 0.0F) : nearest;
}

template <int kLevels>
[[gnu::always_inline]] inline float QuantiseTo(const float* x, uint64_t first, const PhiloxStream& rounding, int8_t* codes) {
  // Magnitudes of finite floats are ordered as their bits are, and maxima of integers are what compilers make vectors of.
  int32_t largest = 0;
  for (size_t i = 0; i < kQuantBlock; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7FFFFFFF);
  }
  const float scale = std::bit_cast<float>(largest) / kLevels;
  if (!(scale > 0)) {
    std::memset(codes, 0, kQuantBlock);
    return scale;
  }
  uint32_t words[kWords];
  Words(rounding, first / kQuantBlock * kQuads, words);
  const float factor = kLevels == 7 ? FactorOf(std::bit_cast<float>(largest), kLevels) : 0;
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < kWords; ++i) {
      const float value = x[half * kWords + i];
      const float level = (kLevels == 7 ? value * factor : value / scale) + OneAnd(half == 0 ? words[i] << 7 : words[i] >> 9);  // within ±(levels + 2)
      const auto truncated = static_cast<int32_t>(level);
      const int32_t floor = truncated - (static_cast<float>(truncated) > level ? 1 : 0);
      codes[half * kWords + i] = static_cast<int8_t>(std::clamp(floor - 1, -kLevels, kLevels));
    }
  }
  return scale;
}

[[gnu::always_inline]] inline float Quantise(const float* x, uint64_t first, int levels, const PhiloxStream& rounding, int8_t* codes) {
  return levels == 7 ? QuantiseTo<7>(x, first, rounding, codes) : QuantiseTo<127>(x, first, rounding, codes);
}

float QuantiseAnywhere(const float* x, uint64_t first, int levels, const PhiloxStream& rounding, int8_t* codes) {
  return Quantise(x, first, levels, rounding, codes);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] float QuantiseAvx2(const float* x, uint64_t first, int levels, const PhiloxStream& rounding, int8_t* codes) {
  return Quantise(x, first, levels, rounding, codes);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] float QuantiseAvx512(const float* x, uint64_t first, int levels, const PhiloxStream& rounding,
                                                                          int8_t* codes) {
  return Quantise(x, first, levels, rounding, codes);
}
#endif

}  // namespace

std::vector<QuantiseForm> QuantiseForms() {
  std::vector<QuantiseForm> forms = {QuantiseAnywhere};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) forms.push_back(QuantiseAvx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    forms.push_back(QuantiseAvx512);
  }
#endif
  return forms;
}

float QuantiseBlock(std::span<const float, kQuantBlock> x, uint64_t first, int levels, const PhiloxStream& rounding,
                    std::span<int8_t, kQuantBlock> codes) {
  static const QuantiseForm form = QuantiseForms().back();
  return form(x.data(), first, levels, rounding, codes.data());
}

}  // namespace tributary::client
