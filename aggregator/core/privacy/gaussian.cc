#include "aggregator/core/privacy/gaussian.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

constexpr int kBisections = 200;  // more than doubles have digits; the loops end earlier

// ln Φ(x) for x <= 0, also where Φ underflows.
double LogNormalCdf(double x) {
  if (x > -30) return std::log(NormalCdf(x));
  const double r = 1 / (x * x);
  return -x * x / 2 - std::log(-x * std::sqrt(2 * std::numbers::pi)) + std::log1p(-r * (1 - 3 * r * (1 - 5 * r)));
}

// Bisects the boundary in [low, high]: `holds` is false at low and true at high. Returns the end where it holds.
template <typename Holds>
double FirstHolding(double low, double high, Holds holds) {
  for (int i = 0; i < kBisections && high - low > 1e-13 * high; ++i) {
    const double middle = low + (high - low) / 2;
    (holds(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace

double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

double GaussianDelta(double mu, double epsilon) {
  TRIB_CHECK(mu > 0 && epsilon >= 0, "mu {}, epsilon {}", mu, epsilon);
  const double second = epsilon + LogNormalCdf(std::min(0.0, -mu / 2 - epsilon / mu));
  return std::max(0.0, NormalCdf(mu / 2 - epsilon / mu) - std::exp(second));
}

double GaussianEpsilon(double mu, double delta) {
  TRIB_CHECK(delta > 0 && delta < 1, "delta {}", delta);
  const auto enough = [&](double epsilon) { return GaussianDelta(mu, epsilon) <= delta; };
  if (enough(0)) return 0;
  double high = 1;
  while (!enough(high)) high *= 2;
  return FirstHolding(0, high, enough);
}

double AnalyticGaussianNoise(double epsilon, double delta) {
  TRIB_CHECK(epsilon > 0 && delta > 0 && delta < 1, "epsilon {}, delta {}", epsilon, delta);
  const auto enough = [&](double noise) { return GaussianDelta(1 / noise, epsilon) <= delta; };
  double high = 1;
  while (!enough(high)) high *= 2;
  double low = high / 2;
  while (enough(low)) low /= 2;
  return FirstHolding(low, 2 * low, enough);
}

}  // namespace tributary::aggregator
