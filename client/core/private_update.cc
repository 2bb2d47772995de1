#include "client/core/private_update.h"

#include <cmath>
#include <memory>
#include <utility>

#include "client/core/random.h"
#include "common/check.h"

namespace tributary::client {
namespace {

// Of the noise that this client adds to each element (algorithms.md §13.2).
double NoiseOf(const JobSpec& spec) {
  const PrivacySpec& privacy = spec.privacy;
  const double stddev = privacy.noise_multiplier * privacy.clip;
  switch (privacy.placement) {
    case NoisePlacement::kDistributed:
      return stddev / std::sqrt(static_cast<double>(spec.EffectiveQuorum()));
    case NoisePlacement::kLocal:
      return stddev;
    case NoisePlacement::kCentral:
      break;
  }
  return 0;
}

}  // namespace

bool NeedsNoiseKey(const JobSpec& spec) { return spec.privacy.enabled && !spec.privacy.insecure_seed && NoiseOf(spec) > 0; }

bool KeepsFeedback(const UpdateEncoding& encoding) { return encoding.codec == Codec::kTopK; }

absl::StatusOr<EncodedUpdate> MakeUpdate(const UpdateRequest& request, LargeBytes flat, std::map<std::string, double>* scalars) {
  const JobSpec& spec = *request.spec;
  const auto seed = static_cast<uint64_t>(spec.seed);
  PhiloxStream stream{.seed = request.repeat == 0 ? seed : MixSeeds(seed, request.repeat),
                      .client = ClientNumber(request.client),
                      .version = static_cast<uint32_t>(request.version)};
  PipelineOptions options;
  options.encoding = request.encoding;
  options.rounding = stream;
  options.rounding.stage = RandomStage::kRounding;
  std::unique_ptr<RandomWords> noise;
  if (spec.privacy.enabled) {
    options.clip = request.clip > 0 ? request.clip : spec.privacy.clip;
    options.noise_stddev = NoiseOf(spec);
    if (options.noise_stddev > 0) {
      TRIB_CHECK(request.noise_key.has_value() || spec.privacy.insecure_seed, "an update of job '{}' without a key for its noise", spec.name);
      noise = request.noise_key ? MakeChaChaSource(*request.noise_key) : MakePhiloxSource(stream);
      options.noise = noise.get();
    }
  }
  TRIB_ASSIGN_OR_RETURN(EncodedUpdate encoded, EncodeUpdate(options, std::move(flat), request.feedback));
  if (spec.privacy.enabled && spec.privacy.adaptive.enabled) (*scalars)[kWithinClip] = encoded.norm <= options.clip ? 1 : 0;
  return encoded;
}

}  // namespace tributary::client
