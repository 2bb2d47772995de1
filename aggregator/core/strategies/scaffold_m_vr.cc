// SCAFFOLD-M-VR: SCAFFOLD-M with the gradient at x⁻ taken off; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kFamily{.momentum = true, .control = true, .reduced = true};

}  // namespace

std::vector<ParamInfo> ScaffoldMVrParams() { return MomentumParams(kFamily); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeScaffoldMVr(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kFamily); }

}  // namespace tributary::aggregator
