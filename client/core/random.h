// Random numbers that are the same on every machine: a counter-based generator and our own transformations of its bits. The
// distributions of <random> are not used, as the standard leaves their algorithms open.
//
// Output i of a stream is a bijective mix of key + i·odd constant (SplitMix64: Steele, Lea, Flood, OOPSLA 2014), the key a mix of
// (seed, stream). Not for privacy noise or keys: it is predictable by design.
// Integer results are equal everywhere. Uniform() is exact; Normal() and Gamma() use libm, whose last bit may differ between
// processors: round before you compare or branch on them.
// Threads: thread-compatible; streams with different numbers are independent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace tributary::client {

class CounterRandom {
 public:
  explicit CounterRandom(uint64_t seed, uint64_t stream = 0);

  uint64_t Next();
  // Uniform in [0, bound), unbiased (Lemire, ACM TOMACS 2019). bound >= 1.
  uint64_t Below(uint64_t bound);
  // Uniform in [0, 1), a multiple of 2^-53.
  double Uniform();
  // Standard normal (Marsaglia's polar method).
  double Normal();
  // Gamma with this shape > 0 and scale 1 (Marsaglia and Tsang, ACM TOMS 2000; shapes below 1 by their boost U^(1/shape)).
  double Gamma(double shape);

  // Fisher-Yates.
  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[Below(i)]);
  }

 private:
  uint64_t state_;
};

// One 64-bit seed from two, well mixed: for seeds of parts from a seed of the whole.
uint64_t MixSeeds(uint64_t seed, uint64_t part);

}  // namespace tributary::client
