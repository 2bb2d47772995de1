// SCAFFOLD-M-VR: SCAFFOLD-M with the gradient at x⁻ taken off; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kScaffoldMVr{.momentum = true, .control = true, .reduced = true};

}  // namespace

std::vector<ParamInfo> ScaffoldMVrParams() { return MomentumParams(kScaffoldMVr); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeScaffoldMVr(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kScaffoldMVr); }

}  // namespace tributary::aggregator
