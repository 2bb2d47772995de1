#include "client/daemon/torch_seam.h"
#include "client/torch/learner.h"

namespace tributary::client {

absl::StatusOr<LearnerFactory> TorchLearnerFactory(const std::string& device, int threads) {
  return LearnerFactory([device, threads] { return MakeTorchLearner({.device = device, .threads = threads}); });
}

absl::StatusOr<FlatModel> TorchInitialModel(const JobSpec& spec) { return InitialModel(spec); }

}  // namespace tributary::client
