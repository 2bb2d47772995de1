#include "aggregator/core/privacy/pld.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "aggregator/core/privacy/fft.h"
#include "aggregator/core/privacy/gaussian.h"
#include "common/check.h"

namespace tributary::aggregator {
namespace {

using Complex = std::complex<double>;

constexpr size_t kMaxGrid = size_t{1} << 22;
constexpr double kTailSigmas = 9.0;       // Φ(−9) = 1.1e−19: what one version's grid leaves out above counts as loss ∞
constexpr double kLogWindowTail = -39.0;  // e^{−39} = 1e−17: what the composed window leaves out on either side

// One version's losses on the grid: pmf[i] = P(loss = (first + i)·h).
struct Discrete {
  int64_t first = 0;
  std::vector<double> pmf;
  double infinite_mass = 0;
};

// δ(t) = P(L > t) − e^t Q(L > t) of one version. With P the mixture (a client removed) L is increasing in x, with P the plain Gaussian
// (a client added) decreasing; where L exceeds t is a half-line in x either way.
class OneVersion {
 public:
  OneVersion(double q, double z, bool remove) : q_(q), z_(z), remove_(remove) {}

  double Delta(double t) const {
    if (remove_) {
      if (t <= std::log1p(-q_)) return -std::expm1(t);
      const double x = Where(t);
      return (1 - q_) * Upper(x) + q_ * Upper(x - 1) - std::exp(t) * Upper(x);
    }
    if (-t <= std::log1p(-q_)) return 0;
    const double x = Where(-t);
    return Upper(-x) - std::exp(t) * ((1 - q_) * Upper(-x) + q_ * Upper(1 - x));
  }
  // Losses beyond these have a probability under Φ(−kTailSigmas).
  double LowestLoss() const { return remove_ ? std::log1p(-q_) : -Loss(kTailSigmas * z_); }
  double HighestLoss() const { return remove_ ? Loss(1 + kTailSigmas * z_) : -std::log1p(-q_); }

 private:
  double Upper(double x) const { return NormalCdf(-x / z_); }
  double Loss(double x) const { return std::log1p(q_ * std::expm1((2 * x - 1) / (2 * z_ * z_))); }
  // The x whose loss (of the mixture against the plain Gaussian) is t > ln(1 − q).
  double Where(double t) const { return z_ * z_ * std::log1p(std::expm1(t) / q_) + 0.5; }

  double q_, z_;
  bool remove_;
};

Discrete ConnectTheDots(const OneVersion& version, double h) {
  Discrete loss;
  loss.first = static_cast<int64_t>(std::floor(version.LowestLoss() / h)) - 1;
  const auto last = static_cast<int64_t>(std::ceil(version.HighestLoss() / h)) + 1;
  const auto count = static_cast<size_t>(last - loss.first + 1);
  std::vector<double> delta(count);
  for (size_t i = 0; i < count; ++i) delta[i] = version.Delta(static_cast<double>(loss.first + static_cast<int64_t>(i)) * h);
  loss.infinite_mass = std::max(0.0, delta.back());
  const double scale = -1 / std::expm1(-h), shrink = std::exp(-h);
  loss.pmf.assign(count, 0.0);
  double total = loss.infinite_mass;
  double next = 0;  // G_{k+1}
  for (size_t i = count - 1; i >= 1; --i) {
    const double here = (delta[i - 1] - delta[i]) * scale;
    loss.pmf[i] = std::max(0.0, here - shrink * next);
    next = here;
    total += loss.pmf[i];
  }
  loss.pmf[0] = std::max(0.0, 1 - total);  // all that is lower, rounded up to here
  return loss;
}

// ln E[e^{λL}] of one version's finite losses.
double LogMoment(const Discrete& loss, double h, double lambda) {
  const double peak = std::max(lambda * static_cast<double>(loss.first) * h,
                               lambda * static_cast<double>(loss.first + static_cast<int64_t>(loss.pmf.size())) * h);
  double sum = 0;
  for (size_t i = 0; i < loss.pmf.size(); ++i) {
    sum += loss.pmf[i] * std::exp(lambda * static_cast<double>(loss.first + static_cast<int64_t>(i)) * h - peak);
  }
  return peak + std::log(sum);
}

// Steps [low, high] outside which the loss of t versions has a probability under e^{kLogWindowTail} a side, by Chernoff's bound, for every
// t up to `versions`. The upper end grows with t. The lower end falls before it rises, so it is looked for at powers of two; what it
// misses in between wraps around to the top of the grid and makes ε larger, never smaller.
struct Window {
  int64_t low, high;
};
Window ComposedWindow(const Discrete& loss, double h, int64_t versions) {
  const auto last = loss.first + static_cast<int64_t>(loss.pmf.size()) - 1;
  const double lowest_one = static_cast<double>(loss.first) * h, highest_one = static_cast<double>(last) * h;
  Window window{loss.first, last};
  std::vector<std::pair<double, double>> ups, downs;  // λ, ln E[e^{±λL}]
  for (double lambda = 1.0 / 64; lambda <= 4096; lambda *= 2) {
    ups.emplace_back(lambda, LogMoment(loss, h, lambda));
    downs.emplace_back(lambda, LogMoment(loss, h, -lambda));
  }
  for (int64_t t = 1;; t = std::min(2 * t, versions)) {
    const double count = static_cast<double>(t);
    double high = count * highest_one, low = count * lowest_one;
    for (const auto& [lambda, moment] : ups) high = std::min(high, (count * moment - kLogWindowTail) / lambda);
    for (const auto& [lambda, moment] : downs) low = std::max(low, -(count * moment - kLogWindowTail) / lambda);
    window.low = std::min(window.low, static_cast<int64_t>(std::floor(low / h)));
    window.high = std::max(window.high, static_cast<int64_t>(std::ceil(high / h)));
    if (t == versions) return window;
  }
}

Complex Power(Complex base, int64_t exponent) {
  Complex result(1, 0);
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace

SubsampledGaussianPld::SubsampledGaussianPld(double q, double z, int64_t max_versions, double step) : step_(step), max_versions_(max_versions) {
  TRIB_CHECK(q > 0 && q < 1 && z > 0 && max_versions >= 1 && step > 0, "PLD of q = {}, z = {}, T = {}, h = {}", q, z, max_versions, step);
  for (;; step_ *= 2) {
    bool fits = true;
    for (const bool remove : {true, false}) {
      const OneVersion version(q, z, remove);
      Direction& direction = remove ? remove_ : add_;
      if ((version.HighestLoss() - version.LowestLoss()) / step_ > static_cast<double>(kMaxGrid)) {
        fits = false;
        break;
      }
      const Discrete loss = ConnectTheDots(version, step_);
      const Window window = ComposedWindow(loss, step_, max_versions_);
      direction.lowest = window.low;
      const size_t grid = std::bit_ceil(static_cast<size_t>(window.high - window.low + 1));
      fits = grid <= kMaxGrid;
      if (!fits) break;
      direction.infinite_mass = loss.infinite_mass;
      direction.transform.assign(grid, Complex());
      for (size_t i = 0; i < loss.pmf.size(); ++i) {
        const auto index = static_cast<size_t>(loss.first + static_cast<int64_t>(i)) & (grid - 1);  // modulo, also of negative ones
        direction.transform[index] += loss.pmf[i];
      }
      Fft(direction.transform);
    }
    if (fits) return;
  }
}

double SubsampledGaussianPld::DirectionEpsilon(const Direction& direction, int64_t versions, double delta) const {
  const size_t grid = direction.transform.size();
  std::vector<Complex> values(grid);
  // The loss is real: the upper half of the spectrum is the conjugate of the lower.
  for (size_t k = 0; k <= grid / 2; ++k) values[k] = Power(direction.transform[k], versions);
  for (size_t k = grid / 2 + 1; k < grid; ++k) values[k] = std::conj(values[grid - k]);
  InverseFft(values);
  // What the window left out above counts as infinite, with the losses that were infinite already.
  const double infinite = -std::expm1(static_cast<double>(versions) * std::log1p(-direction.infinite_mass)) + std::exp(kLogWindowTail);
  if (infinite > delta) return std::numeric_limits<double>::infinity();
  // δ(ε) = infinite + Σ_{l > ε} (1 − e^{ε−l}) pmf(l) = infinite + mass − e^ε·tilted with the sums over l > ε. From the top down to the
  // first grid point whose δ is over the limit; between grid points the sums are constant and ε follows.
  double mass = 0, tilted = 0;
  for (size_t i = grid; i-- > 0;) {
    const double l = static_cast<double>(direction.lowest + static_cast<int64_t>(i)) * step_;
    if (l <= 0) break;
    const auto index = static_cast<size_t>(direction.lowest + static_cast<int64_t>(i)) & (grid - 1);
    if (infinite + mass - std::exp(l) * tilted > delta) break;
    const double pmf = std::max(0.0, values[index].real());
    mass += pmf;
    tilted += std::exp(-l) * pmf;
  }
  if (infinite + mass - tilted <= delta || tilted == 0) return 0;
  return std::max(0.0, std::log((infinite + mass - delta) / tilted));
}

double SubsampledGaussianPld::Epsilon(int64_t versions, double delta) const {
  TRIB_CHECK(versions >= 1 && versions <= max_versions_ && delta > 0 && delta < 1, "{} versions of {}, delta {}", versions, max_versions_, delta);
  return std::max(DirectionEpsilon(remove_, versions, delta), DirectionEpsilon(add_, versions, delta));
}

}  // namespace tributary::aggregator
