#include "aggregator/core/privacy/job_privacy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/privacy_spec.h"

namespace tributary::aggregator {
namespace {

// With distributed noise an empty Poisson cohort would be a version without any. Below this expectation that is no rarity: e^−20 is 2e−9.
constexpr double kLeastExpectedCohort = 20;
constexpr double kDefaultCountShare = 1.0 / 20;  // σ_b over the cohort (Andrew et al. 2021, §4)

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

// Of a version nothing may be seen but one sum over the updates, in which each client is at most once.
absl::Status CheckOneSum(const JobSpec& spec, const Strategy& strategy) {
  const std::string& name = spec.strategy.name;
  if (strategy.whole_reducer() != nullptr) {
    return InvalidArgument("privacy: strategy '{}' looks at every update by itself: the noise on a sum does not cover that", name);
  }
  const std::vector<ScalarInfo> scalars = strategy.scalars();
  const auto telling = std::find_if(scalars.begin(), scalars.end(), [](const ScalarInfo& one) { return !one.of_version; });
  if (telling != scalars.end() || !strategy.norm_scalar().empty()) {
    const std::string what = telling == scalars.end() ? strategy.norm_scalar() : telling->name;
    return InvalidArgument("privacy: with strategy '{}' a number of every update ('{}') leaves the client without noise", name, what);
  }
  if (strategy.update_groups() != std::vector<std::string>{""}) {
    return InvalidArgument("privacy: with strategy '{}' an update carries the change of a control variate, which clip and noise do not cover", name);
  }
  if (strategy.server_step().needs_base()) {
    return InvalidArgument("privacy: strategy '{}' mixes the model of one client at a time: its commits are no sums over a cohort", name);
  }
  if (!strategy.synchronous() && strategy.MakePolicies(spec.cohort).second_update == SecondUpdate::kCounts) {
    return InvalidArgument("privacy: with strategy '{}' a client may be in a version more than once; expected a synchronous strategy, or fedbuff "
                           "with once_per_buffer: true", name);
  }
  return absl::OkStatus();
}

absl::Status CheckCohort(const JobSpec& spec, const Strategy& strategy, double most_weight) {
  const double expected = spec.cohort.rate * static_cast<double>(spec.cohort.population);
  if (spec.cohort.poisson && spec.privacy.placement == NoisePlacement::kDistributed && expected < kLeastExpectedCohort) {
    return InvalidArgument("privacy: cohort: distributed noise needs an expected cohort (rate × population) of at least {}, got {}: smaller ones are "
                           "empty too often, and then there is no noise", kLeastExpectedCohort, expected);
  }
  if (spec.privacy.placement == NoisePlacement::kDistributed && !(strategy.synchronous() && most_weight == 1)) {
    return InvalidArgument("privacy: placement: with strategy '{}' the updates of a version are not all of weight 1, so that shares of the noise do not add up "
                           "to what is promised; expected central or local, got distributed", spec.strategy.name);
  }
  return absl::OkStatus();
}

absl::Status CheckRest(const JobSpec& spec, const TensorLayout& layout, const Strategy& strategy) {
  if (!strategy.local_buffers() && (layout.summed_count() != layout.trainable_count() || layout.counter_count() != 0)) {
    return InvalidArgument("privacy: the model has {} buffer elements and {} counters, whose values would leave the clients without noise; "
                           "expected strategy: {{buffers: local}}, or a model of trainable tensors only (group norm in place of batch norm)",
                           layout.summed_count() - layout.trainable_count(), layout.counter_count());
  }
  if (spec.record) return InvalidArgument("privacy: record: true would keep the updates as they came, without the noise of a whole version; expected false");
  if (spec.privacy.adaptive.enabled && !strategy.synchronous()) {
    return InvalidArgument("privacy: adaptive_clip: the updates of a version of strategy '{}' start from different ones, with different norms; expected a "
                           "synchronous strategy", spec.strategy.name);
  }
  return absl::OkStatus();
}

std::string FormatSpend(double epsilon) { return fmt::format("{:.6g}", epsilon); }

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

std::vector<ScalarInfo> UpdateScalars(const Strategy& strategy, const JobSpec& spec) {
  std::vector<ScalarInfo> scalars = strategy.scalars();
  if (spec.privacy.enabled && spec.privacy.adaptive.enabled) {
    scalars.push_back({.name = kWithinClip, .low = 0, .low_open = false, .binary = true, .help = "1 if the update's norm was within the clip, else 0"});
  }
  return scalars;
}

JobPrivacy::JobPrivacy(const JobSpec& spec, double most_weight)
    : spec_(spec), event_(EventOf(spec)), most_weight_(most_weight), versions_(spec.stop.versions), sum_multiplier_(spec.privacy.noise_multiplier) {}

absl::StatusOr<std::unique_ptr<JobPrivacy>> JobPrivacy::Create(const JobSpec& spec, const TensorLayout& layout, const Strategy& strategy) {
  TRIB_RETURN_IF_ERROR(CheckOneSum(spec, strategy));
  const absl::StatusOr<double> most = strategy.weights().Most();
  if (!most.ok()) return InvalidArgument("privacy: strategy '{}': {}", spec.strategy.name, MessageOf(most.status()));
  TRIB_RETURN_IF_ERROR(CheckCohort(spec, strategy, *most));
  TRIB_RETURN_IF_ERROR(CheckRest(spec, layout, strategy));
  std::unique_ptr<JobPrivacy> privacy(new JobPrivacy(spec, *most));
  const double z = spec.privacy.noise_multiplier;
  if (z == 0) return privacy;
  if (privacy->adaptive()) {
    const AdaptiveClipSpec& adaptive = spec.privacy.adaptive;
    const double count = adaptive.count_stddev > 0 ? adaptive.count_stddev : kDefaultCountShare * privacy->Denominator(0);
    if (!(2 * count > z)) {
      return InvalidArgument("privacy: adaptive_clip: noise of deviation {} on the number of updates within the norm costs as much as noise_multiplier {} "
                             "allows in all: expected count_stddev (default: a twentieth of the cohort) greater than {}", count, z, z / 2);
    }
    privacy->count_stddev_ = count;
    privacy->sum_multiplier_ = 1 / std::sqrt(1 / (z * z) - 1 / (4 * count * count));
  }
  auto accountant = PrivacyAccountant::Create(privacy->event_, spec.privacy.delta, spec.stop.versions);
  if (!accountant.ok()) return Annotate(accountant.status(), "privacy");
  privacy->accountant_ = *std::move(accountant);
  if (spec.privacy.epsilon_budget > 0) privacy->versions_ = privacy->accountant_->AffordableVersions(spec.privacy.epsilon_budget);
  if (privacy->versions_ == 0) {
    return InvalidArgument("privacy: epsilon_budget: {} does not pay for one version, which costs {:.4g} at delta {}", spec.privacy.epsilon_budget,
                           privacy->accountant_->Spend(1).epsilon(), spec.privacy.delta);
  }
  return privacy;
}

std::optional<std::string> JobPrivacy::EndedByBudget(uint64_t version) const {
  if (versions_ >= spec_.stop.versions || version < static_cast<uint64_t>(versions_)) return std::nullopt;
  return fmt::format("the privacy budget is spent: epsilon {} of {} after version {}, one more would exceed it", FormatSpend(SpendAfter(version).epsilon()),
                     spec_.privacy.epsilon_budget, version);
}

PrivacySpend JobPrivacy::SpendAfter(uint64_t version) const {
  if (accountant_ == nullptr) return {.rdp = version == 0 ? 0 : std::numeric_limits<double>::infinity(), .rdp_order = 0, .pld = std::nullopt};
  return accountant_->Spend(std::min(static_cast<int64_t>(version), accountant_->max_versions()));
}

double JobPrivacy::ClipFactor(double sum_squares, double clip) const {
  const double norm = std::sqrt(sum_squares);
  return central() && norm > clip ? clip / norm : 1.0;
}

double JobPrivacy::Denominator(double contributors) const {
  if (spec_.privacy.placement == NoisePlacement::kLocal) return contributors;
  return spec_.cohort.poisson ? spec_.cohort.rate * static_cast<double>(spec_.cohort.population) : static_cast<double>(spec_.cohort.size);
}

double JobPrivacy::SumStddev(double clip) const { return sum_multiplier_ * most_weight_ * clip; }

std::unique_ptr<RandomWords> JobPrivacy::NoiseOf(uint64_t version, const std::optional<ChaChaKey>& key) const {
  if (key) return MakeChaChaSource(*key);
  return MakePhiloxSource({.seed = static_cast<uint64_t>(spec_.seed), .client = 0, .version = static_cast<uint32_t>(version)});
}

double JobPrivacy::NextClip(double clip, std::span<const RoundContributor> contributors, size_t elements, RandomWords* noise) const {
  if (!adaptive()) return clip;
  double sum = 0;
  for (const RoundContributor& contributor : contributors) {
    const auto bit = contributor.scalars.find(kWithinClip);
    if (bit != contributor.scalars.end()) sum += bit->second - 0.5;
  }
  if (count_stddev_ > 0) {
    std::array<double, 1> drawn{};
    AddNormals(*noise, (elements + 3) / 4 * 4, count_stddev_, std::span<double>(drawn));
    sum += drawn[0];
  }
  const double share = sum / Denominator(static_cast<double>(contributors.size())) + 0.5;
  const AdaptiveClipSpec& adaptive = spec_.privacy.adaptive;
  // Far beyond any norm of use, and still a number that a float can be scaled by.
  return std::clamp(clip * std::exp(-adaptive.rate * (share - adaptive.quantile)), 1e-30, 1e30);
}

}  // namespace tributary::aggregator
