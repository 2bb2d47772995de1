// The `privacy:` block of a job: whose noise, how much, and what it may cost in all (algorithms.md §13.2).
//
//   privacy: {mechanism: gaussian, placement: central, clip: 1.0, noise_multiplier: 1.1, delta: 1e-5, epsilon_budget: 8}
//
// placement  central: the server adds noise once, to the sum; distributed: each client adds its share; local: each client adds it all.
// clip C: every update's L2 norm, at most. noise_multiplier z: the noise on the sum has a deviation of z·C (local: on each update).
// epsilon, in place of z: the aggregator finds the z that stop.versions versions need, and puts it into the job.
// Threads: values. Errors: recorded in the reader with line, column, key, expected and got.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/yaml_reader.h"

namespace tributary {

enum class NoisePlacement { kCentral, kDistributed, kLocal };
std::string_view NoisePlacementName(NoisePlacement placement);  // "central", …

struct PrivacySpec {
  bool enabled = false;
  NoisePlacement placement = NoisePlacement::kCentral;
  double clip = 0;               // C > 0
  double noise_multiplier = 0;   // z > 0, or 0 as long as only `epsilon` is given
  double epsilon = 0;            // 0: not given
  double delta = 0;              // in (0, 1)
  double epsilon_budget = 0;     // 0: none; the job stops before the version that would exceed it
  bool replace = true;           // adjacency: one client replaced (sensitivity 2C), not one more or less (C)
  bool insecure_seed = false;    // noise and cohorts from the job's seed: reproducible, and no secret
  bool operator==(const PrivacySpec&) const = default;
};

// Reads the map at `key`. `poisson`: cohorts are drawn so, which decides the adjacency.
void ReadPrivacy(YamlReader& top, std::string_view key, bool poisson, PrivacySpec* spec);
// The block in flow style, as ReadPrivacy reads it. Only of one that is enabled.
std::string CanonicalPrivacy(const PrivacySpec& spec);

}  // namespace tributary
