#include "client/core/analytic_learner.h"
#include "client/daemon/torch_seam.h"
#include "client/torch/learner.h"

namespace tributary::client {

absl::StatusOr<LearnerFactory> TorchLearnerFactory(const std::string& device, int threads) {
  return LearnerFactory([device, threads]() -> absl::StatusOr<std::unique_ptr<Learner>> {
    TRIB_ASSIGN_OR_RETURN(std::unique_ptr<Learner> torch, MakeTorchLearner({.device = device, .threads = threads}));
    return WithAnalyticModels(std::move(torch), absl::OkStatus());
  });
}

absl::StatusOr<FlatModel> TorchInitialModel(const JobSpec& spec) { return InitialModel(spec); }

}  // namespace tributary::client
