#include "aggregator/core/privacy/accountant.h"

#include <cmath>
#include <functional>

#include "aggregator/core/privacy/gaussian.h"
#include "aggregator/core/privacy/rdp.h"
#include "common/check.h"

namespace tributary::aggregator {
namespace {

constexpr double kNoisePrecision = 1e-6;

bool HasPld(SamplingEvent sampling) { return sampling == SamplingEvent::kPoisson; }

absl::Status CheckArguments(const PrivacyEvent& event, double delta, int64_t versions) {
  if (!(event.sample_rate > 0 && event.sample_rate <= 1)) return InvalidArgument("sample rate: expected a number in (0, 1], got {}", event.sample_rate);
  if (!(event.noise_multiplier >= kMinNoise && event.noise_multiplier <= kMaxNoise)) {
    return InvalidArgument("noise multiplier: expected a number in [{}, {}], got {}", kMinNoise, kMaxNoise, event.noise_multiplier);
  }
  if (!(delta > 0 && delta < 1)) return InvalidArgument("delta: expected a number in (0, 1), got {}", delta);
  if (versions < 1 || versions > kMaxAccountedVersions) {
    return InvalidArgument("versions: expected 1 to {}, got {}", kMaxAccountedVersions, versions);
  }
  return absl::OkStatus();
}

std::vector<double> RdpOfOneVersion(const PrivacyEvent& event) {
  std::vector<double> rdp;
  if (event.sampling == SamplingEvent::kTree) return rdp;
  for (const double order : RdpOrders()) {
    rdp.push_back(event.sampling == SamplingEvent::kPoisson ? PoissonGaussianRdp(event.sample_rate, event.noise_multiplier, order)
                                                            : FixedSizeGaussianRdp(event.sample_rate, event.noise_multiplier, order));
  }
  return rdp;
}

RdpEpsilon SpendByRdp(const PrivacyEvent& event, const std::vector<double>& one, double delta, int64_t versions) {
  std::vector<double> rdp = one;
  for (double& value : rdp) value *= static_cast<double>(versions);
  if (event.sampling == SamplingEvent::kTree) {
    for (const double order : RdpOrders()) rdp.push_back(TreeGaussianRdp(event.noise_multiplier, versions, order));
  }
  return EpsilonOfRdp(rdp, delta);
}

// The least z in [low, high] with spend(z) <= target, spend falling, spend(low) > target >= spend(high). Both are near straight lines in
// logarithms, so false position with Illinois' correction needs a handful of evaluations where bisection needs twenty.
double SolveNoise(double low, double spend_low, double high, double spend_high, double target, const std::function<double(double)>& spend) {
  const auto gap = [target](double epsilon) { return std::log(std::max(epsilon, 1e-300)) - std::log(target); };
  double a = std::log(low), b = std::log(high), fa = gap(spend_low), fb = gap(spend_high);
  int same = 0;  // consecutive moves of one end
  while (b - a > kNoisePrecision) {
    const bool usable = std::isfinite(fa) && fa > fb && std::abs(same) < 3;
    double middle = usable ? b - fb * (b - a) / (fb - fa) : (a + b) / 2;
    middle = std::min(std::max(middle, a + kNoisePrecision / 4), b - kNoisePrecision / 4);
    const double value = gap(spend(std::exp(middle)));
    if (value > 0) {
      a = middle;
      fa = value;
      if (same > 0) fb /= 2;
      same = same > 0 ? same + 1 : 1;
    } else {
      b = middle;
      fb = value;
      if (same < 0) fa /= 2;
      same = same < 0 ? same - 1 : -1;
    }
    if (std::abs(same) > 3) same = 0;
  }
  return std::exp(b);
}

}  // namespace

std::string_view SamplingEventName(SamplingEvent event) {
  switch (event) {
    case SamplingEvent::kPoisson:
      return "poisson";
    case SamplingEvent::kFixedSize:
      return "fixed_size";
    case SamplingEvent::kTree:
      break;
  }
  return "tree";
}

PrivacyAccountant::PrivacyAccountant(const PrivacyEvent& event, double delta, int64_t max_versions)
    : event_(event), delta_(delta), max_versions_(max_versions), rdp_(RdpOfOneVersion(event)) {
  if (event.sampling == SamplingEvent::kPoisson && event.sample_rate < 1) pld_.emplace(event.sample_rate, event.noise_multiplier, max_versions);
}

absl::StatusOr<std::unique_ptr<PrivacyAccountant>> PrivacyAccountant::Create(const PrivacyEvent& event, double delta, int64_t max_versions) {
  TRIB_RETURN_IF_ERROR(CheckArguments(event, delta, max_versions));
  return std::unique_ptr<PrivacyAccountant>(new PrivacyAccountant(event, delta, max_versions));
}

PrivacySpend PrivacyAccountant::Spend(int64_t versions) const {
  TRIB_CHECK(versions >= 0 && versions <= max_versions_, "{} versions of {}", versions, max_versions_);
  PrivacySpend spend;
  if (versions == 0) {
    if (HasPld(event_.sampling)) spend.pld = 0;
    return spend;
  }
  const RdpEpsilon rdp = SpendByRdp(event_, rdp_, delta_, versions);
  spend.rdp = rdp.epsilon;
  spend.rdp_order = rdp.order;
  if (pld_) {
    // Both are upper bounds; a coarse grid may lie above RDP.
    spend.pld = std::min(pld_->Epsilon(versions, delta_), spend.rdp);
  } else if (HasPld(event_.sampling)) {
    spend.pld = GaussianEpsilon(std::sqrt(static_cast<double>(versions)) / event_.noise_multiplier, delta_);
  }
  return spend;
}

int64_t PrivacyAccountant::AffordableVersions(double budget) const {
  int64_t enough = 0, over = max_versions_ + 1;
  while (over - enough > 1) {
    const int64_t middle = enough + (over - enough) / 2;
    (Spend(middle).epsilon() <= budget ? enough : over) = middle;
  }
  return enough;
}

absl::StatusOr<double> CalibrateNoise(PrivacyEvent event, double delta, int64_t versions, double epsilon, Accounting accounting) {
  event.noise_multiplier = 1;
  TRIB_RETURN_IF_ERROR(CheckArguments(event, delta, versions));
  if (!(epsilon > 0 && std::isfinite(epsilon))) return InvalidArgument("epsilon: expected a number greater than 0, got {}", epsilon);
  if (accounting == Accounting::kPld && !HasPld(event.sampling)) {
    return InvalidArgument("a {} event has no privacy loss distribution here; calibrate it by RDP", SamplingEventName(event.sampling));
  }
  const auto by_rdp = [&](double z) {
    event.noise_multiplier = z;
    return SpendByRdp(event, RdpOfOneVersion(event), delta, versions).epsilon;
  };
  const auto by_pld = [&](double z) {
    event.noise_multiplier = z;
    if (event.sample_rate == 1) return GaussianEpsilon(std::sqrt(static_cast<double>(versions)) / z, delta);
    return std::min(by_rdp(z), SubsampledGaussianPld(event.sample_rate, z, versions).Epsilon(versions, delta));
  };
  // Bracket by doubling, by RDP: it is the cheaper one, and what it allows PLD allows too.
  double high = 1, low = 1;
  double at_high = by_rdp(high), at_low = at_high;
  while (at_high > epsilon) {
    low = high;
    at_low = at_high;
    high *= 2;
    if (high > kMaxNoise) return InvalidArgument("epsilon {}: even a noise multiplier of {} gives more", epsilon, kMaxNoise);
    at_high = by_rdp(high);
  }
  const auto lower = [&](double factor, const auto& spend) {
    for (low = std::min(low, high); at_low <= epsilon; at_low = spend(low)) {
      high = low;
      at_high = at_low;
      if (low <= kMinNoise) return false;
      low = std::max(low * factor, kMinNoise);
    }
    return true;
  };
  const auto too_weak = [&] { return InvalidArgument("epsilon {}: a noise multiplier of {} already gives less", epsilon, kMinNoise); };
  if (!lower(0.5, by_rdp)) return too_weak();
  double noise = SolveNoise(low, at_low, high, at_high, epsilon, by_rdp);
  if (accounting == Accounting::kRdp) return noise;
  low = high = noise;
  at_low = at_high = by_pld(noise);
  if (!lower(0.9, by_pld)) return too_weak();
  return SolveNoise(low, at_low, high, at_high, epsilon, by_pld);
}

}  // namespace tributary::aggregator
