// The privacy of one job on the server: what it may not be combined with, clipping and noise of its sums, and what its versions have cost.
// The same for the daemon and for simulations.
//
// A job's event follows from how its cohorts are drawn and from nothing else: Poisson (add_remove, q = rate), a fixed size of a population
// (replace, q = size / population), or no draw at all (replace, q = 1; asynchronous jobs too). A version is one sum in which no update
// weighs more than a stated number w (1; FedAU: its cutoff); buffers, counters and numbers beside the sum are refused: what the accountant
// does not see may not leave. Central noise on the sum has a deviation of z·w·C.
// Adaptive clipping (Andrew, Thakkar, McMahan, Ramaswamy 2021): every update says b = 1{‖Δ‖ ≤ C_t} before the clip; with n = Denominator,
//   b̃ = (Σ(b_i − ½) + N(0, σ_b²))/n + ½,  C_{t+1} = C_t·exp(−η_C(b̃ − γ)),  and the sum's noise is z_Δ·C_t, z_Δ = (z⁻² − (2σ_b)⁻²)^{−½},
// so that both together cost what z alone does. C_t belongs to the version that updates start from.
// Sources: DP-FedAvg (McMahan, Ramage, Talwar, Zhang 2018) with the fixed denominator; algorithms.md §13.2.
// Errors: INVALID_ARGUMENT with key, expected and got. Threads: const methods from any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "aggregator/core/privacy/accountant.h"
#include "aggregator/core/strategy.h"
#include "common/job_spec.h"
#include "common/random_words.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

// At submission: finds the noise multiplier of a job that gives an epsilon instead.
absl::Status ResolveNoise(JobSpec* spec);

// What every update of the job carries by name: the strategy's numbers, and with adaptive clipping kWithinClip.
std::vector<ScalarInfo> UpdateScalars(const Strategy& strategy, const JobSpec& spec);

class JobPrivacy {
 public:
  // spec.privacy.enabled, its multiplier known. INVALID_ARGUMENT also when the budget does not pay for one version.
  static absl::StatusOr<std::unique_ptr<JobPrivacy>> Create(const JobSpec& spec, const TensorLayout& layout, const Strategy& strategy);

  // How many versions the job makes: stop.versions, or as many of them as the budget pays for.
  int64_t versions() const { return versions_; }
  // Why the job ends with `version`, if the budget is the reason.
  std::optional<std::string> EndedByBudget(uint64_t version) const;
  // After `version` versions (0: nothing is spent). Without noise: infinite from the first on.
  PrivacySpend SpendAfter(uint64_t version) const;
  const PrivacyEvent& event() const { return event_; }
  const JobSpec& spec() const { return spec_; }

  bool central() const { return spec_.privacy.placement == NoisePlacement::kCentral; }
  bool adaptive() const { return spec_.privacy.adaptive.enabled; }
  // Whether the noise of a version comes from the operating system, not from the job's seed.
  bool secret() const { return !spec_.privacy.insecure_seed; }
  // Central: min(1, C/‖decoded update‖), whatever the client says it did. 1 otherwise: there the noise is in the update already.
  double ClipFactor(double sum_squares, double clip) const;
  // What divides the sum of a version. Fixed where the noise is on the sum, so that a dropout does not change what noise there is.
  double Denominator(double contributors) const;
  // Deviation of the central noise on each element of the sum.
  double SumStddev(double clip) const;
  // Deviation σ_b of the noise on how many updates were within C; 0 without adaptive clipping.
  double count_stddev() const { return count_stddev_; }
  // Where the noise of one version comes from: `key` if secret(), else the job's seed.
  std::unique_ptr<RandomWords> NoiseOf(uint64_t version, const std::optional<ChaChaKey>& key) const;
  // C of the next version. Takes its normal from `noise` behind those of the `elements` of the sum. Without adaptive clipping: `clip`.
  double NextClip(double clip, std::span<const RoundContributor> contributors, size_t elements, RandomWords* noise) const;

 private:
  JobPrivacy(const JobSpec& spec, double most_weight);

  const JobSpec spec_;
  const PrivacyEvent event_;
  const double most_weight_;
  std::unique_ptr<PrivacyAccountant> accountant_;  // null: no noise
  int64_t versions_;
  double count_stddev_ = 0;
  double sum_multiplier_ = 0;  // z, or z_Δ
};

}  // namespace tributary::aggregator
