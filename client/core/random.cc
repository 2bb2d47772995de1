#include "client/core/random.h"

#include <cmath>

namespace tributary::client {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio, odd: the counter's stride in SplitMix64

uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

uint64_t MixSeeds(uint64_t seed, uint64_t part) { return Mix(Mix(seed + kGolden) + kGolden * (part + 1)); }

CounterRandom::CounterRandom(uint64_t seed, uint64_t stream) : state_(MixSeeds(seed, stream)) {}

uint64_t CounterRandom::Next() {
  state_ += kGolden;
  return Mix(state_);
}

uint64_t CounterRandom::Below(uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  Wide product = static_cast<Wide>(Next()) * bound;
  auto low = static_cast<uint64_t>(product);
  if (low < bound) {
    const uint64_t threshold = -bound % bound;
    while (low < threshold) {
      product = static_cast<Wide>(Next()) * bound;
      low = static_cast<uint64_t>(product);
    }
  }
  return static_cast<uint64_t>(product >> 64);
}

double CounterRandom::Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

double CounterRandom::Normal() {
  while (true) {
    const double u = 2 * Uniform() - 1;
    const double v = 2 * Uniform() - 1;
    const double s = u * u + v * v;
    if (s > 0 && s < 1) return u * std::sqrt(-2 * std::log(s) / s);
  }
}

double CounterRandom::Gamma(double shape) {
  if (shape < 1) {
    const double boosted = Gamma(shape + 1);
    return boosted * std::pow(1 - Uniform(), 1 / shape);  // 1 - U is in (0, 1]: never 0^x
  }
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  while (true) {
    const double x = Normal();
    const double t = 1 + c * x;
    if (t <= 0) continue;
    const double v = t * t * t;
    const double u = 1 - Uniform();
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace tributary::client
