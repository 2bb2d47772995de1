// Rényi differential privacy of Gaussian mechanisms, per version, and its conversion to (ε, δ).
//
// `noise_multiplier` z is the noise's standard deviation over the sensitivity of the sum it is added to; `sample_rate` q the share of
// the registered clients that a version expects. RDP adds over versions. All values are finite or +Inf, never NaN.
// Sources: Poisson, integer orders: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530) §3.3, eq. 7; fractional: the same, §3.3 (two series).
// Fixed size: Wang, Balle, Kasiviswanathan 2019 (arXiv 1808.00087), Theorem 27; between integers its Corollary 10. Tree: Kairouz et
// al. 2021 (arXiv 2103.00039), appendix D. Conversion: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Proposition 12.
// Preconditions (TRIB_CHECK): 0 <= q <= 1, z > 0, α > 1. Threads: pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tributary::aggregator {

// 1.1 … 10.9 in steps of .1, 11 … 63, 128, 256, 512, 1024.
std::span<const double> RdpOrders();

// Every client joins a version with probability q, independently; neighbours differ by one client more or less.
double PoissonGaussianRdp(double sample_rate, double noise_multiplier, double order);

// Exactly q·N of N clients, uniform without replacement; neighbours replace one client by another (z relative to that sensitivity, 2C).
double FixedSizeGaussianRdp(double sample_rate, double noise_multiplier, double order);

// Binary-tree sums over `versions` steps, each client used once: one node a level, bit_length(versions) levels. For all versions.
double TreeGaussianRdp(double noise_multiplier, int64_t versions, double order);

struct RdpEpsilon {
  double epsilon = 0;  // >= 0
  double order = 0;    // the best one
};
// min over orders of rdp + ln((α−1)/α) − (ln δ + ln α)/(α−1). `rdp[i]` belongs to RdpOrders()[i]; 0 < δ < 1.
RdpEpsilon EpsilonOfRdp(std::span<const double> rdp, double delta);

}  // namespace tributary::aggregator
