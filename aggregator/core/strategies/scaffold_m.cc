// SCAFFOLD-M: control variates and the client's momentum; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kScaffoldM{.momentum = true, .control = true};

}  // namespace

std::vector<ParamInfo> ScaffoldMParams() { return MomentumParams(kScaffoldM); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeScaffoldM(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kScaffoldM); }

}  // namespace tributary::aggregator
