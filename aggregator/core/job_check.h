// What of a job does not go together, as far as strategy, model and updates tell: one list for submission to a daemon and for `simulate`.
// Errors: INVALID_ARGUMENT with key, expected and got. Threads: pure.
#pragma once

#include "aggregator/core/strategy.h"
#include "common/job_spec.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

absl::Status CheckJob(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model);

}  // namespace tributary::aggregator
