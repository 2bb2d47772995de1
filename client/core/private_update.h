// From what a learner gave to the bytes that travel, as the job says: its `privacy` and `codec` keys turned into stages of update_pipeline.h.
// Daemons and simulations make their updates here.
//
// Noise is this client's part of what the job promises: none (central), its share of z·C (distributed: as many as must survive together add
// up to the promised variance), or all of it (local). Its words come from `noise_key`, or from the job's seed; rounding always from the
// seed: of noised values it is post-processing. With adaptive clipping the update says whether its norm was within C (kWithinClip).
// Errors: those of EncodeUpdate. Threads: pure.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "client/core/update_pipeline.h"
#include "common/job_spec.h"
#include "common/large_bytes.h"
#include "common/random_words.h"
#include "common/status.h"

namespace tributary::client {

// Name of the state that a job with KeepsFeedback() keeps on each client, in two phases.
inline constexpr char kErrorFeedback[] = "error_feedback";

struct UpdateRequest {
  const JobSpec* spec = nullptr;
  UpdateEncoding encoding{};
  std::string client;
  uint64_t version = 0;                   // it starts from
  uint64_t repeat = 0;                    // how many updates this client made from that version before
  double clip = 0;                        // C of that version; 0: the job's
  std::optional<ChaChaKey> noise_key{};   // of real noise, one key an update; nothing: the job's seed
  std::span<const float> feedback{};      // residual of the last counted update; empty: none
};

// The same as stages of the pipeline, for who encodes elsewhere.
struct UpdatePlan {
  PipelineOptions options{};               // options.noise is `noise`
  std::unique_ptr<RandomWords> noise{};    // null: there is none; else from `noise_key`, or from `noise_stream`
  std::optional<ChaChaKey> noise_key{};
  PhiloxStream noise_stream{};
};
UpdatePlan PlanUpdate(const UpdateRequest& request);
// What a job's privacy adds to the numbers of an update with this norm.
void AddPrivacyScalars(const UpdateRequest& request, const UpdatePlan& plan, double norm, std::map<std::string, double>* scalars);

// Whether this client's noise must come from the operating system.
bool NeedsNoiseKey(const JobSpec& spec);
// Whether an update may leave while it is still being made and stored. Not one with noise of this client: after a crash its task is trained and
// noised anew, and what had left would be a second release of the same data. Not one whose header waits for its norm (kWithinClip).
bool MayLeaveEarly(const JobSpec& spec);
// Whether the codec drops what the next update has to bring.
bool KeepsFeedback(const UpdateEncoding& encoding);

// `scalars`: gets what the job's privacy adds to the numbers of an update. `flat` as in EncodeUpdate.
absl::StatusOr<EncodedUpdate> MakeUpdate(const UpdateRequest& request, LargeBytes flat, std::map<std::string, double>* scalars);

}  // namespace tributary::client
