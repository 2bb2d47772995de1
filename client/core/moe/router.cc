#include "client/core/moe/router.h"

namespace tributary::client {

void Router::EndStep(std::span<const int64_t>) {}

std::vector<double> Router::LossWeights(std::span<const int64_t>) const { return {}; }

void Router::SetGlobalLoad(GlobalLoad) {}

absl::Status Router::SetState(std::span<const float> state) {
  if (state.empty()) return absl::OkStatus();
  return InvalidArgument("router: it keeps no state, got one of {} numbers", state.size());
}

}  // namespace tributary::client
