// SCAFFOLD: control variates in the client's step, v = c − c_i; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kFamily{.control = true};

}  // namespace

std::vector<ParamInfo> ScaffoldParams() { return MomentumParams(kFamily); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeScaffold(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kFamily); }

}  // namespace tributary::aggregator
