// The `privacy:` block of a job: whose noise, how much, and what it may cost in all (algorithms.md §13.2).
//
//   privacy: {mechanism: gaussian, placement: central, clip: 1.0, noise_multiplier: 1.1, delta: 1e-5, epsilon_budget: 8}
//
// placement  central: the server adds noise once, to the sum; distributed: each client adds its share; local: each client adds it all.
// clip C: every update's L2 norm, at most. noise_multiplier z: the noise on the sum has a deviation of z·C (local: on each update).
// noise_multiplier 0: updates are clipped and nothing is added or promised (epsilon is infinite).
// epsilon, in place of z: the aggregator finds the z that stop.versions versions need, and puts it into the job.
// adaptive_clip: C follows the quantile of the updates' norms, from `clip` on (Andrew et al. 2021; aggregator/core/privacy/job_privacy.h).
// Threads: values. Errors: recorded in the reader with line, column, key, expected and got.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/yaml_reader.h"

namespace tributary {

enum class NoisePlacement { kCentral, kDistributed, kLocal };
std::string_view NoisePlacementName(NoisePlacement placement);  // "central", …

// Name of the number with which an update says whether its norm was within the clip (adaptive clipping): 1 or 0.
inline constexpr char kWithinClip[] = "within_clip";

struct AdaptiveClipSpec {
  bool enabled = false;
  double quantile = 0.5;         // γ: share of updates that are to be within C, in (0, 1)
  double rate = 0.2;             // η_C > 0
  double count_stddev = 0;       // σ_b: deviation of the noise on how many were within C; 0: a twentieth of the cohort
  bool operator==(const AdaptiveClipSpec&) const = default;
};

struct PrivacySpec {
  bool enabled = false;
  NoisePlacement placement = NoisePlacement::kCentral;
  double clip = 0;               // C > 0; with adaptive_clip that of version 0
  double noise_multiplier = 0;   // z >= 0; 0 also as long as only `epsilon` is given
  double epsilon = 0;            // 0: not given
  double delta = 0;              // in (0, 1)
  double epsilon_budget = 0;     // 0: none; the job stops before the version that would exceed it
  bool replace = true;           // adjacency: one client replaced (sensitivity 2C), not one more or less (C)
  AdaptiveClipSpec adaptive{};
  bool insecure_seed = false;    // noise and cohorts from the job's seed: reproducible, and no secret
  bool operator==(const PrivacySpec&) const = default;
};

// Reads the map at `key`. `poisson`: cohorts are drawn so, which decides the adjacency.
void ReadPrivacy(YamlReader& top, std::string_view key, bool poisson, PrivacySpec* spec);
// The block in flow style, as ReadPrivacy reads it. Only of one that is enabled.
std::string CanonicalPrivacy(const PrivacySpec& spec);

}  // namespace tributary
