#include "client/rpc/privatise.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "client/core/update_pipeline.h"
#include "common/log.h"
#include "common/random_words.h"

namespace tributary::client {
namespace {

constexpr char kFeedback[] = "error_feedback";

// Of the noise that this client adds: its share, all of it, or none (algorithms.md §13.2).
double NoiseOf(const JobSpec& spec) {
  const PrivacySpec& privacy = spec.privacy;
  const double stddev = privacy.noise_multiplier * privacy.clip;
  switch (privacy.placement) {
    case NoisePlacement::kDistributed:
      // As many as must survive together add up to the promised variance; more of them to more.
      return stddev / std::sqrt(static_cast<double>(spec.EffectiveQuorum()));
    case NoisePlacement::kLocal:
      return stddev;
    case NoisePlacement::kCentral:
      break;
  }
  return 0;
}

}  // namespace

absl::StatusOr<LargeBytes> Privatise(const Job& job, const std::string& client, const OutboxHeader& header, const StateFiles& state, LargeBytes flat) {
  const JobSpec& spec = job.spec;
  const PhiloxStream seeded{.seed = static_cast<uint64_t>(spec.seed), .client = ClientNumber(client), .version = static_cast<uint32_t>(header.version)};
  PipelineOptions options;
  options.encoding = job.encoding;
  options.rounding = seeded;
  options.rounding.stage = RandomStage::kRounding;
  std::unique_ptr<RandomWords> noise;
  if (spec.privacy.enabled) {
    options.clip = spec.privacy.clip;
    options.noise_stddev = NoiseOf(spec);
    if (options.noise_stddev > 0 && spec.privacy.insecure_seed) {
      noise = MakePhiloxSource(seeded);
    } else if (options.noise_stddev > 0) {
      TRIB_ASSIGN_OR_RETURN(const ChaChaKey key, SecretKey());
      noise = MakeChaChaSource(key);
    }
    options.noise = noise.get();
  }
  std::vector<float> feedback;
  if (job.encoding.codec == Codec::kTopK) {
    const absl::StatusOr<std::optional<StateValue>> kept = state.Current(header.job, kFeedback);
    const size_t bytes = job.encoding.trainable * sizeof(float);
    if (!kept.ok() || (*kept && (*kept)->bytes.size() != bytes)) {
      // What earlier updates left out is lost then: a delay for the model, no error in it.
      TRIB_LOG(warn, "{}: error feedback begins anew: {}", client,
               kept.ok() ? fmt::format("expected {} bytes, got {}", bytes, (*kept)->bytes.size()) : MessageOf(kept.status()));
    } else if (*kept) {
      feedback.resize(job.encoding.trainable);
      std::memcpy(feedback.data(), (*kept)->bytes.data(), bytes);
    }
  }
  TRIB_ASSIGN_OR_RETURN(EncodedUpdate encoded, EncodeUpdate(options, std::move(flat), feedback));
  if (job.encoding.codec == Codec::kTopK) TRIB_RETURN_IF_ERROR(state.Stage(header.job, kFeedback, header.update, std::as_bytes(std::span(encoded.residual))));
  return std::move(encoded.bytes);
}

}  // namespace tributary::client
