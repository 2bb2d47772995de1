// What tributary-client needs of LibTorch. torch_on.cc calls client/torch; torch_off.cc is built without LibTorch: its learners train
// analytic models (client/core/analytic) and refuse all others, saying so.
#pragma once

#include <string>

#include "client/rpc/client_runtime.h"
#include "common/job_spec.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace tributary::client {

absl::StatusOr<LearnerFactory> TorchLearnerFactory(const std::string& device, int threads);
// FAILED_PRECONDITION in a build without LibTorch.
absl::StatusOr<FlatModel> TorchInitialModel(const JobSpec& spec);

}  // namespace tributary::client
