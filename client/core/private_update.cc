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

bool MayLeaveEarly(const JobSpec& spec) { return !spec.privacy.enabled || (NoiseOf(spec) == 0 && !spec.privacy.adaptive.enabled); }

bool KeepsFeedback(const UpdateEncoding& encoding) { return encoding.codec == Codec::kTopK; }

UpdatePlan PlanUpdate(const UpdateRequest& request) {
  const JobSpec& spec = *request.spec;
  const auto seed = static_cast<uint64_t>(spec.seed);
  UpdatePlan plan;
  plan.noise_stream = {.seed = request.repeat == 0 ? seed : MixSeeds(seed, request.repeat),
                       .client = ClientNumber(request.client),
                       .version = static_cast<uint32_t>(request.version)};
  plan.options.encoding = request.encoding;
  plan.options.rounding = plan.noise_stream;
  plan.options.rounding.stage = RandomStage::kRounding;
  if (spec.privacy.enabled) {
    plan.options.clip = request.clip > 0 ? request.clip : spec.privacy.clip;
    plan.options.noise_stddev = NoiseOf(spec);
    if (plan.options.noise_stddev > 0) {
      TRIB_CHECK(request.noise_key.has_value() || spec.privacy.insecure_seed, "an update of job '{}' without a key for its noise", spec.name);
      plan.noise_key = request.noise_key;
      plan.noise = request.noise_key ? MakeChaChaSource(*request.noise_key) : MakePhiloxSource(plan.noise_stream);
      plan.options.noise = plan.noise.get();
    }
  }
  return plan;
}

void AddPrivacyScalars(const UpdateRequest& request, const UpdatePlan& plan, double norm, std::map<std::string, double>* scalars) {
  const PrivacySpec& privacy = request.spec->privacy;
  if (privacy.enabled && privacy.adaptive.enabled) (*scalars)[kWithinClip] = norm <= plan.options.clip ? 1 : 0;
}

absl::StatusOr<EncodedUpdate> MakeUpdate(const UpdateRequest& request, LargeBytes flat, std::map<std::string, double>* scalars) {
  const UpdatePlan plan = PlanUpdate(request);
  TRIB_ASSIGN_OR_RETURN(EncodedUpdate encoded, EncodeUpdate(plan.options, std::move(flat), request.feedback));
  AddPrivacyScalars(request, plan, encoded.norm, scalars);
  return encoded;
}

}  // namespace tributary::client
