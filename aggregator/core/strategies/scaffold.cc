// SCAFFOLD: control variates in the client's step, v = c − c_i; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kScaffold{.control = true};

}  // namespace

std::vector<ParamInfo> ScaffoldParams() { return MomentumParams(kScaffold); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeScaffold(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kScaffold); }

}  // namespace tributary::aggregator
