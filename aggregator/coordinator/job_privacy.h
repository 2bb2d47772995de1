// The privacy of one job on the server: what it may not be combined with, clipping and noise of its sums, and what its versions have cost.
//
// A job's event follows from how its cohorts are drawn and from nothing else: Poisson (add_remove, q = rate), a fixed size of a population
// (replace, q = size / population), or no draw at all (replace, q = 1). Weights must be 1, buffers and counters absent: what the accountant
// does not see may not leave.
// Sources: DP-FedAvg (McMahan, Ramage, Talwar, Zhang 2018) with the fixed denominator; algorithms.md §13.2.
// Errors: INVALID_ARGUMENT with key, expected and got. Threads: const methods from any number of threads.
#pragma once

#include <cstdint>
#include <memory>

#include "aggregator/core/privacy/accountant.h"
#include "aggregator/core/strategy.h"
#include "common/job_spec.h"
#include "common/random_words.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "tributary/v1/admin.pb.h"

namespace tributary::aggregator {

// At submission: finds the noise multiplier of a job that gives an epsilon instead.
absl::Status ResolveNoise(JobSpec* spec);

class JobPrivacy {
 public:
  // spec.privacy.enabled, its multiplier known. INVALID_ARGUMENT also when the budget does not pay for one version.
  static absl::StatusOr<std::unique_ptr<JobPrivacy>> Create(const JobSpec& spec, const TensorLayout& layout, const Strategy& strategy);

  // How many versions the job makes: stop.versions, or as many of them as the budget pays for.
  int64_t versions() const { return versions_; }
  bool budget_ends_it() const { return versions_ < spec_.stop.versions; }
  // After `version` versions (0: nothing is spent).
  v1::PrivacySpend SpendAfter(uint64_t version) const;
  // Central: min(1, C/‖decoded update‖), whatever the client says it did. 1 otherwise: there the noise is in the update already.
  double ClipFactor(double sum_squares) const;
  // What divides the sum of a version. Fixed where the noise is on the sum, so that a dropout does not change what noise there is.
  double Denominator(double contributors) const;
  bool central() const { return spec_.privacy.placement == NoisePlacement::kCentral; }
  double sum_stddev() const { return spec_.privacy.noise_multiplier * spec_.privacy.clip; }
  // Of the noise of one version; a new secret each time, or the job's seed under insecure_seed.
  absl::StatusOr<std::unique_ptr<RandomWords>> NoiseOf(uint64_t version) const;

 private:
  JobPrivacy(const JobSpec& spec, std::unique_ptr<PrivacyAccountant> accountant);

  const JobSpec spec_;
  const std::unique_ptr<PrivacyAccountant> accountant_;
  int64_t versions_;
};

}  // namespace tributary::aggregator
