// What a simulated job may leave to its own simulate: block: how often each client takes part or contributes. `known_p` without `p` gets
// the participation model's shares; the asynchronous strategies with `weight: known` and without `frequency` get the frequencies that
// the delay law implies (algorithms.md §8). Lists by position are rewritten by name: the engine orders clients by id, a job by shard.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::simulate {

// INVALID_ARGUMENT where the block implies no rates: name the parameter that must be given then.
absl::Status FillKnownRates(const std::vector<std::string>& clients, JobSpec* spec);

}  // namespace tributary::simulate
