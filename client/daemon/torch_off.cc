#include "client/daemon/torch_seam.h"

namespace tributary::client {
namespace {
absl::Status NoTorch() {
  return FailedPrecondition("this build of tributary-client has no LibTorch and cannot train; run scripts/deps.sh and build with preset "
                            "'release' (or any other with TRIBUTARY_TORCH=ON)");
}
}  // namespace

absl::StatusOr<LearnerFactory> TorchLearnerFactory(const std::string&, int) { return NoTorch(); }

absl::StatusOr<FlatModel> TorchInitialModel(const JobSpec&) { return NoTorch(); }

}  // namespace tributary::client
