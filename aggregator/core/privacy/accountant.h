// What a job's noise costs: (ε, δ) after T versions for the way its cohorts are drawn, and the noise that a given ε asks for.
//
// The event follows from how clients are really chosen (job key cohort.sampling). There is no way to give a fixed-size cohort Poisson's
// amplification: the two kinds have different neighbours and different formulas, and only Poisson and full participation have a PLD.
// `noise_multiplier` z: standard deviation over the sensitivity, which is C for add_remove and 2C for replace (algorithms.md §13.2).
// Errors: INVALID_ARGUMENT for values out of range, with the name. Threads: const methods from any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "aggregator/core/privacy/pld.h"
#include "common/status.h"

namespace tributary::aggregator {

enum class SamplingEvent : uint8_t {
  kPoisson,    // each registered client by itself with probability sample_rate; neighbours: one more or less
  kFixedSize,  // sample_rate × N of N without replacement; neighbours: one replaced
  kTree,       // tree aggregation, each client used once in the T versions; sample_rate is not used
};
std::string_view SamplingEventName(SamplingEvent event);  // "poisson", "fixed_size", "tree"

struct PrivacyEvent {
  SamplingEvent sampling = SamplingEvent::kPoisson;
  double sample_rate = 1;  // in (0, 1]
  double noise_multiplier = 0;  // in [kMinNoise, kMaxNoise]
};

inline constexpr double kMinNoise = 0.01, kMaxNoise = 1e6;
inline constexpr int64_t kMaxAccountedVersions = 100'000'000;

struct PrivacySpend {
  double rdp = 0;             // ε by Rényi DP
  double rdp_order = 0;       // where its minimum is
  std::optional<double> pld;  // ε by the privacy loss distribution; absent for events without one
  // The ε that budgets count: PLD where there is one.
  double epsilon() const { return pld ? *pld : rdp; }
};

// The accountant of one event and δ, for up to `max_versions`. Makes its tables once (up to a second); a Spend is then milliseconds.
class PrivacyAccountant {
 public:
  static absl::StatusOr<std::unique_ptr<PrivacyAccountant>> Create(const PrivacyEvent& event, double delta, int64_t max_versions);

  // 0 <= versions <= max_versions (TRIB_CHECK). Nothing is spent by 0.
  PrivacySpend Spend(int64_t versions) const;
  // The most versions, up to max_versions, whose ε does not exceed `budget`.
  int64_t AffordableVersions(double budget) const;
  double delta() const { return delta_; }
  int64_t max_versions() const { return max_versions_; }
  const PrivacyEvent& event() const { return event_; }

 private:
  PrivacyAccountant(const PrivacyEvent& event, double delta, int64_t max_versions);

  PrivacyEvent event_;
  double delta_;
  int64_t max_versions_;
  std::vector<double> rdp_;  // of one version (tree: unused), in RdpOrders()
  std::optional<SubsampledGaussianPld> pld_;
};

enum class Accounting : uint8_t { kRdp, kPld };

// The least noise multiplier, to 1e-6 relative and rounded up, with ε(z) <= epsilon after `versions`. `event.noise_multiplier` is ignored.
// INVALID_ARGUMENT for kPld where the event has none, or where no multiplier up to kMaxNoise suffices or kMinNoise is already enough.
absl::StatusOr<double> CalibrateNoise(PrivacyEvent event, double delta, int64_t versions, double epsilon, Accounting accounting);

}  // namespace tributary::aggregator
