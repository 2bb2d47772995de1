// SCAFFOLD-M: control variates and the client's momentum; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kFamily{.momentum = true, .control = true};

}  // namespace

std::vector<ParamInfo> ScaffoldMParams() { return MomentumParams(kFamily); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeScaffoldM(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kFamily); }

}  // namespace tributary::aggregator
