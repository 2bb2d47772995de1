#include "client/core/analytic_learner.h"
#include "client/daemon/torch_seam.h"

namespace tributary::client {
namespace {
absl::Status NoTorch() {
  return FailedPrecondition("this build of tributary-client has no LibTorch and trains analytic models only; run scripts/deps.sh and build with preset "
                            "'release' (or any other with TRIBUTARY_TORCH=ON)");
}
}  // namespace

absl::StatusOr<LearnerFactory> TorchLearnerFactory(const std::string&, int) {
  return LearnerFactory([]() -> absl::StatusOr<std::unique_ptr<Learner>> { return WithAnalyticModels(nullptr, NoTorch()); });
}

absl::StatusOr<FlatModel> TorchInitialModel(const JobSpec&) { return NoTorch(); }

}  // namespace tributary::client
