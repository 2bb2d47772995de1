#include "aggregator/core/privacy/rdp.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double LogAdd(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == -kInfinity ? a : a + std::log1p(std::exp(b - a));
}

// ln(e^a − e^b), a >= b.
double LogSubtract(double a, double b) {
  if (b == -kInfinity) return a;
  return a <= b ? -kInfinity : a + std::log(-std::expm1(b - a));
}

double LogBinomial(double n, double k) { return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1); }

// erfc underflows from 26.5 on; the asymptotic series is exact to 1e-16 from 20 on.
double LogErfc(double x) {
  if (x < 20) return std::log(std::erfc(x));
  const double r = 1 / (2 * x * x);
  return -x * x - std::log(x * std::sqrt(std::numbers::pi)) + std::log1p(-r * (1 - 3 * r * (1 - 5 * r * (1 - 7 * r))));
}

// ln Σ_k C(α,k)(1−q)^{α−k} q^k e^{k(k−1)/(2z²)}. The binomial weights add up to 1, so with e^x − 1 in place of e^x the sum is A − 1:
// no cancellation when A is next to 1.
double LogMomentInteger(double q, double z, int64_t order) {
  const double alpha = static_cast<double>(order);
  double excess = -kInfinity;
  for (int64_t k = 2; k <= order; ++k) {
    const double i = static_cast<double>(k);
    const double exponent = i * (i - 1) / (2 * z * z);
    const double log_growth = exponent < 1 ? std::log(std::expm1(exponent)) : exponent + std::log1p(-std::exp(-exponent));
    excess = LogAdd(excess, LogBinomial(alpha, i) + (alpha - i) * std::log1p(-q) + i * std::log(q) + log_growth);
  }
  return excess > 30 ? LogAdd(0, excess) : std::log1p(std::exp(excess));
}

double LogMomentFractional(double q, double z, double alpha) {
  const double split = z * z * std::log(1 / q - 1) + 0.5;
  const double root = std::numbers::sqrt2 * z;
  double positive = -kInfinity, negative = -kInfinity;
  // |C(α, i)| follows from |C(α, i−1)| by the factor |α − i + 1| / i; its sign flips whenever that numerator is negative.
  double log_binomial = 0;
  bool minus = false;
  constexpr int kMaxTerms = 1'000'000;
  constexpr double kNegligible = -45;  // e^{−45} = 3e−20 of a sum near 1
  for (int step = 0; step < kMaxTerms; ++step) {
    const double i = step;
    const double j = alpha - i;
    if (step > 0) {
      const double numerator = alpha - i + 1;
      log_binomial += std::log(std::abs(numerator)) - std::log(i);
      if (numerator < 0) minus = !minus;
    }
    const double lower = log_binomial + j * std::log1p(-q) + i * std::log(q) + (i * i - i) / (2 * z * z) +
                         LogErfc((i - split) / root) - std::numbers::ln2;
    const double upper = log_binomial + i * std::log1p(-q) + j * std::log(q) + (j * j - j) / (2 * z * z) +
                         LogErfc((split - j) / root) - std::numbers::ln2;
    double& sum = minus ? negative : positive;
    sum = LogAdd(sum, LogAdd(lower, upper));
    if (i > alpha && std::max(lower, upper) < kNegligible) break;
  }
  return LogSubtract(positive, negative);
}

// ln E_{x ~ N(0, z²)}[(e^{(2x−1)/(2z²)} − 1)^l], l even: that is B_l of Theorem 27. The alternating sum that defines it loses all digits
// for large z; the integrand here is never negative. The trapezoid rule is exact to rounding for such integrands at this step.
double LogEvenMoment(double z, int64_t power) {
  constexpr double kStep = 1.0 / 16;
  const double l = static_cast<double>(power);
  const double low = -40, high = l / z + 40;
  const auto points = static_cast<int64_t>((high - low) / kStep);
  double best = -kInfinity, sum = 0;
  for (int64_t p = 0; p <= points; ++p) {
    const double t = low + kStep * static_cast<double>(p);
    const double loss = t / z - 1 / (2 * z * z);
    const double log_ratio = loss > 30 ? loss : std::log(std::abs(std::expm1(loss)));
    const double term = l * log_ratio - t * t / 2;
    if (term == -kInfinity) continue;
    if (term > best) {
      sum = sum * std::exp(best - term) + 1;
      best = term;
    } else {
      sum += std::exp(term - best);
    }
  }
  return best + std::log(sum * kStep / std::sqrt(2 * std::numbers::pi));
}

// Above this order only the second of Theorem 27's two bounds is taken for the terms j >= 3: looser, but linear in the order.
constexpr int64_t kMaxExactOrder = 256;

double LogMomentFixedSize(double q, double z, int64_t order) {
  if (order <= 1) return 0;
  const double alpha = static_cast<double>(order);
  const auto gaussian = [z](double j) { return j / (2 * z * z); };
  // B_2, B_4, …: B_l at l/2 − 1.
  std::vector<double> moments;
  if (order <= kMaxExactOrder) {
    for (int64_t l = 2; l <= order + 1; l += 2) moments.push_back(LogEvenMoment(z, l));
  }
  double excess = 2 * std::log(q) + LogBinomial(alpha, 2) +
                  std::min(std::log(4.0) + gaussian(2) + std::log(-std::expm1(-gaussian(2))), std::numbers::ln2 + gaussian(2));
  for (int64_t j = 3; j <= order; ++j) {
    const double i = static_cast<double>(j);
    double bound = std::numbers::ln2 + (i - 1) * gaussian(i);
    if (!moments.empty()) {
      const auto below = static_cast<size_t>(j / 2 - 1), above = static_cast<size_t>((j + 1) / 2 - 1);
      bound = std::min(bound, std::log(4.0) + 0.5 * (moments[below] + moments[above]));
    }
    excess = LogAdd(excess, i * std::log(q) + LogBinomial(alpha, i) + bound);
  }
  return excess > 30 ? LogAdd(0, excess) : std::log1p(std::exp(excess));
}

void CheckArguments(double q, double z, double order) {
  TRIB_CHECK(q >= 0 && q <= 1 && z > 0 && order > 1, "RDP of q = {}, z = {}, order {}", q, z, order);
}

}  // namespace

std::span<const double> RdpOrders() {
  static const std::vector<double> orders = [] {
    std::vector<double> list;
    for (int tenth = 11; tenth <= 109; ++tenth) list.push_back(tenth / 10.0);
    for (int order = 11; order <= 63; ++order) list.push_back(order);
    for (const double order : {128, 256, 512, 1024}) list.push_back(order);
    return list;
  }();
  return orders;
}

double PoissonGaussianRdp(double q, double z, double order) {
  CheckArguments(q, z, order);
  if (q == 0) return 0;
  if (q == 1) return order / (2 * z * z);
  const double log_moment = order == std::floor(order) ? LogMomentInteger(q, z, static_cast<int64_t>(order)) : LogMomentFractional(q, z, order);
  return std::max(0.0, log_moment / (order - 1));
}

double FixedSizeGaussianRdp(double q, double z, double order) {
  CheckArguments(q, z, order);
  if (q == 0) return 0;
  if (q == 1) return order / (2 * z * z);
  const double below = std::floor(order);
  const double share = order - below;
  double log_moment = LogMomentFixedSize(q, z, static_cast<int64_t>(below));
  if (share > 0) log_moment = (1 - share) * log_moment + share * LogMomentFixedSize(q, z, static_cast<int64_t>(below) + 1);
  return log_moment / (order - 1);
}

double TreeGaussianRdp(double z, int64_t versions, double order) {
  CheckArguments(1, z, order);
  int levels = 0;
  for (int64_t rest = versions; rest > 0; rest >>= 1) ++levels;
  return order * levels / (2 * z * z);
}

RdpEpsilon EpsilonOfRdp(std::span<const double> rdp, double delta) {
  const std::span<const double> orders = RdpOrders();
  TRIB_CHECK(rdp.size() == orders.size() && delta > 0 && delta < 1, "{} orders, delta {}", rdp.size(), delta);
  RdpEpsilon best{.epsilon = kInfinity, .order = orders.front()};
  for (size_t i = 0; i < orders.size(); ++i) {
    const double a = orders[i];
    const double epsilon = rdp[i] + std::log1p(-1 / a) - (std::log(delta) + std::log(a)) / (a - 1);
    if (epsilon < best.epsilon) best = {.epsilon = epsilon, .order = a};
  }
  best.epsilon = std::max(0.0, best.epsilon);
  return best;
}

}  // namespace tributary::aggregator
