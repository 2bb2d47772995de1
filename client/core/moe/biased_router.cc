#include "client/core/moe/biased_router.h"

#include <algorithm>
#include <cmath>

namespace tributary::client {

absl::Status BiasedRouter::SetState(std::span<const float> state) {
  if (state.size() != bias_.size()) return InvalidArgument("router: expected a state of {} numbers, got {}", bias_.size(), state.size());
  if (!std::all_of(state.begin(), state.end(), [](float b) { return std::isfinite(b); })) return InvalidArgument("router: its state is not finite");
  bias_.assign(state.begin(), state.end());
  return absl::OkStatus();
}

}  // namespace tributary::client
