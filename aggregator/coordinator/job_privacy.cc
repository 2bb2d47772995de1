#include "aggregator/coordinator/job_privacy.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>

namespace tributary::aggregator {
namespace {

// Synchronous strategies whose server step sees nothing of the updates but one sum, in which each update has weight 1.
constexpr std::array<std::string_view, 6> kOneSum = {"fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"};
// An empty Poisson cohort would have to be a version of noise alone. Below this expectation that is no rarity: e^−20 is 2e−9.
constexpr double kLeastExpectedCohort = 20;

PrivacyEvent EventOf(const JobSpec& spec) {
  PrivacyEvent event;
  event.noise_multiplier = spec.privacy.replace ? spec.privacy.noise_multiplier / 2 : spec.privacy.noise_multiplier;
  if (spec.privacy.placement == NoisePlacement::kLocal) return event;  // the plain Gaussian mechanism: everybody, q = 1
  if (spec.cohort.poisson) {
    event.sample_rate = spec.cohort.rate;
    return event;
  }
  event.sampling = SamplingEvent::kFixedSize;
  if (spec.cohort.population > 0) event.sample_rate = static_cast<double>(spec.cohort.size) / static_cast<double>(spec.cohort.population);
  return event;
}

absl::Status CheckCombination(const JobSpec& spec, const TensorLayout& layout, const Strategy& strategy) {
  const std::string& name = spec.strategy.name;
  if (std::find(kOneSum.begin(), kOneSum.end(), name) == kOneSum.end()) {
    return InvalidArgument("privacy: with strategy '{}' more than one bounded sum leaves the clients, or the bound is not known; expected one of {}", name,
                           fmt::join(kOneSum, ", "));
  }
  for (const double claimed : {0.5, 7.0}) {
    const absl::StatusOr<double> weight = strategy.weights().Weight({.client = "any", .claimed = claimed});
    if (!weight.ok() || *weight != 1.0) {
      return InvalidArgument("privacy: strategy.weighting: expected uniform, got weights that the client sets: no bound on what one client adds to the sum");
    }
  }
  if (!strategy.local_buffers() && (layout.float_count() != layout.trainable_count() || layout.counter_count() != 0)) {
    return InvalidArgument("privacy: the model has {} buffer elements and {} counters, whose values would leave the clients without noise; "
                           "expected strategy: {{buffers: local}}, or a model of trainable tensors only (group norm in place of batch norm)",
                           layout.float_count() - layout.trainable_count(), layout.counter_count());
  }
  if (spec.cohort.poisson && spec.cohort.rate * static_cast<double>(spec.cohort.population) < kLeastExpectedCohort) {
    return InvalidArgument("privacy: cohort: expected rate × population of at least {}, got {}: smaller cohorts are empty too often",
                           kLeastExpectedCohort, spec.cohort.rate * static_cast<double>(spec.cohort.population));
  }
  if (spec.cohort.population == 0 && spec.cohort.poisson) return InvalidArgument("privacy: cohort.population: required with sampling poisson");
  return absl::OkStatus();
}

}  // namespace

absl::Status ResolveNoise(JobSpec* spec) {
  PrivacySpec& privacy = spec->privacy;
  if (!privacy.enabled || privacy.epsilon == 0) return absl::OkStatus();
  if (privacy.noise_multiplier > 0) {
    return InvalidArgument("privacy: expected noise_multiplier or epsilon, got both ({} and {})", privacy.noise_multiplier, privacy.epsilon);
  }
  privacy.noise_multiplier = 1;
  const PrivacyEvent event = EventOf(*spec);
  const Accounting accounting = event.sampling == SamplingEvent::kPoisson ? Accounting::kPld : Accounting::kRdp;
  const auto noise = CalibrateNoise(event, privacy.delta, spec->stop.versions, privacy.epsilon, accounting);
  if (!noise.ok()) return Annotate(noise.status(), "privacy");
  privacy.noise_multiplier = privacy.replace ? 2 * *noise : *noise;
  return absl::OkStatus();
}

JobPrivacy::JobPrivacy(const JobSpec& spec, std::unique_ptr<PrivacyAccountant> accountant)
    : spec_(spec), accountant_(std::move(accountant)), versions_(spec.stop.versions) {
  if (spec.privacy.epsilon_budget > 0) versions_ = accountant_->AffordableVersions(spec.privacy.epsilon_budget);
}

absl::StatusOr<std::unique_ptr<JobPrivacy>> JobPrivacy::Create(const JobSpec& spec, const TensorLayout& layout, const Strategy& strategy) {
  TRIB_RETURN_IF_ERROR(CheckCombination(spec, layout, strategy));
  auto accountant = PrivacyAccountant::Create(EventOf(spec), spec.privacy.delta, spec.stop.versions);
  if (!accountant.ok()) return Annotate(accountant.status(), "privacy");
  std::unique_ptr<JobPrivacy> privacy(new JobPrivacy(spec, *std::move(accountant)));
  if (privacy->versions_ == 0) {
    return InvalidArgument("privacy: epsilon_budget: {} does not pay for one version, which costs {:.4g} at delta {}", spec.privacy.epsilon_budget,
                           privacy->accountant_->Spend(1).epsilon(), spec.privacy.delta);
  }
  return privacy;
}

v1::PrivacySpend JobPrivacy::SpendAfter(uint64_t version) const {
  const PrivacySpend spend = accountant_->Spend(std::min(static_cast<int64_t>(version), accountant_->max_versions()));
  v1::PrivacySpend out;
  out.set_epsilon(spend.epsilon());
  out.set_delta(spec_.privacy.delta);
  out.set_epsilon_rdp(spend.rdp);
  out.set_epsilon_pld(spend.pld.value_or(std::numeric_limits<double>::quiet_NaN()));
  out.set_epsilon_budget(spec_.privacy.epsilon_budget);
  out.set_noise_multiplier(spec_.privacy.noise_multiplier);
  out.set_clip(spec_.privacy.clip);
  out.set_sampling(std::string(SamplingEventName(accountant_->event().sampling)));
  out.set_sample_rate(accountant_->event().sample_rate);
  out.set_adjacency(spec_.privacy.replace ? "replace" : "add_remove");
  out.set_placement(std::string(NoisePlacementName(spec_.privacy.placement)));
  out.set_insecure_seed(spec_.privacy.insecure_seed);
  return out;
}

double JobPrivacy::ClipFactor(double sum_squares) const {
  const double norm = std::sqrt(sum_squares);
  return central() && norm > spec_.privacy.clip ? spec_.privacy.clip / norm : 1.0;
}

double JobPrivacy::Denominator(double contributors) const {
  if (spec_.privacy.placement == NoisePlacement::kLocal) return contributors;
  return spec_.cohort.poisson ? spec_.cohort.rate * static_cast<double>(spec_.cohort.population) : static_cast<double>(spec_.cohort.size);
}

absl::StatusOr<std::unique_ptr<RandomWords>> JobPrivacy::NoiseOf(uint64_t version) const {
  if (spec_.privacy.insecure_seed) {
    return MakePhiloxSource({.seed = static_cast<uint64_t>(spec_.seed), .client = 0, .version = static_cast<uint32_t>(version)});
  }
  TRIB_ASSIGN_OR_RETURN(const ChaChaKey key, SecretKey());
  return MakeChaChaSource(key);
}

}  // namespace tributary::aggregator
