// From what a learner gave to what the outbox keeps: the job's privacy and codec settings turned into stages of client/core's pipeline,
// with the keys and the client state they need.
// Real privacy noise is keyed from the operating system, anew for every update; under `insecure_seed` from the job's seed. Rounding is
// always from the seed: of noised values it is post-processing.
// Errors: those of EncodeUpdate, and of the state's files. Threads: one call at a time for a client and job.
#pragma once

#include <string>

#include "client/data/client_state.h"
#include "client/data/outbox.h"
#include "client/rpc/work.h"
#include "common/large_bytes.h"
#include "common/status.h"

namespace tributary::client {

// `header`: of the update, its id and version set. State that the update changes is staged under its id.
absl::StatusOr<LargeBytes> Privatise(const Job& job, const std::string& client, const OutboxHeader& header, const StateFiles& state, LargeBytes flat);

}  // namespace tributary::client
