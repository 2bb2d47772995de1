#include "client/core/consensus_check.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>

namespace tributary::client {
namespace {

constexpr double kSmall = 0.01;         // of ‖ρN_i‖
constexpr size_t kLargestDimension = 256;
constexpr size_t kProblemsLookedAt = 8; // they are of one kind
constexpr int kMostSweeps = 30;
constexpr double kRounding = 1e-12;     // relative to the largest eigenvalue

}  // namespace

double SmallestPositiveEigenvalue(std::vector<double> matrix, size_t d) {
  const auto at = [&](size_t i, size_t j) -> double& { return matrix[i * d + j]; };
  double scale = 0;
  for (const double value : matrix) scale = std::max(scale, std::abs(value));
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    double off = 0;
    for (size_t p = 0; p < d; ++p) {
      for (size_t q = p + 1; q < d; ++q) {
        const double apq = at(p, q);
        off = std::max(off, std::abs(apq));
        if (std::abs(apq) <= kRounding * kRounding * scale) continue;
        const double theta = (at(q, q) - at(p, p)) / (2 * apq);
        const double t = (theta >= 0 ? 1.0 : -1.0) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (size_t k = 0; k < d; ++k) {
          const double kp = at(k, p), kq = at(k, q);
          at(k, p) = c * kp - s * kq;
          at(k, q) = s * kp + c * kq;
        }
        for (size_t k = 0; k < d; ++k) {
          const double pk = at(p, k), qk = at(q, k);
          at(p, k) = c * pk - s * qk;
          at(q, k) = s * pk + c * qk;
        }
      }
    }
    if (off <= kRounding * scale) break;
  }
  double largest = 0, smallest = 0;
  for (size_t i = 0; i < d; ++i) largest = std::max(largest, at(i, i));
  for (size_t i = 0; i < d; ++i) {
    if (at(i, i) > static_cast<double>(d) * kRounding * largest && (smallest == 0 || at(i, i) < smallest)) smallest = at(i, i);
  }
  return smallest;
}

std::vector<std::string> ConsensusWarnings(const JobSpec& spec, std::span<const std::shared_ptr<const AnalyticProblem>> problems) {
  std::vector<std::string> warnings;
  double rho = 1;
  const auto given = spec.strategy.params.find("rho");
  if (spec.strategy.name != "rerce_admm" || (given != spec.strategy.params.end() && !absl::SimpleAtod(given->second, &rho))) return warnings;
  double worst = 0;
  for (const auto& problem : problems.first(std::min(problems.size(), kProblemsLookedAt))) {
    const std::span<const double> hessian = problem->hessian();
    if (hessian.empty() || problem->dimension() > kLargestDimension) continue;
    const double lambda = SmallestPositiveEigenvalue({hessian.begin(), hessian.end()}, problem->dimension());
    if (lambda > 0) worst = std::max(worst, rho / (rho + lambda));
  }
  if (worst <= kSmall) return warnings;
  const std::string why = fmt::format("‖ρ(∇²f_i + ρI)⁻¹‖ is {:.3g} on the range of a client's Hessian, not below {}; fedadmm has no such limit", worst, kSmall);
  const ChannelSpec& channel = spec.simulate.channel;
  if (channel.has_snr || channel.uplink_var > 0 || channel.downlink_var > 0) {
    warnings.push_back("strategy rerce_admm: noise on the links makes its consensus a random walk, +3 dB for each doubling of the rounds: " + why);
  }
  const ParticipationSpec& participation = spec.simulate.participation;
  if (spec.cohort.size < static_cast<int64_t>(problems.size()) || participation.kind != "all") {
    warnings.push_back(fmt::format("strategy rerce_admm: rounds of fewer than all {} clients do not end at the optimum: {}", problems.size(), why));
  }
  return warnings;
}

}  // namespace tributary::client
