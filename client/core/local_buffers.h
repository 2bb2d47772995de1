// `buffers: local` (algorithms.md §1.4): a client's buffers, batch normalisation's means and variances, stay with it. It trains from its own,
// those of its last counted update, on the model's trainable tensors; the update has the received ones in their place, and the server leaves
// them as they were. Counters go up as ever, but not under `privacy`: then they stay as they were received, too.
// Pure. Threads: as the learner. Errors: the learner's.
#pragma once

#include <span>
#include <vector>

#include "client/core/learner.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

inline constexpr char kBuffersVector[] = "buffers";  // of ClientState

bool BuffersStayLocal(const StrategySpec& strategy);

// learner.Train, with the client's own buffers where the job says so.
absl::StatusOr<TrainResult> TrainLocally(Learner& learner, TrainRequest request, const Dataset* data);

// learner.TrainCohort likewise; one client after the other where they keep buffers of their own.
std::vector<absl::StatusOr<TrainResult>> TrainCohortLocally(Learner& learner, std::span<const CohortMember> members);

}  // namespace tributary::client
