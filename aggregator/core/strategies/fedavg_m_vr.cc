// FedAvg-M-VR: the client's momentum with the gradient at x⁻ taken off; see momentum.h.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kFedAvgClientMVr{.momentum = true, .reduced = true};

}  // namespace

std::vector<ParamInfo> FedAvgClientMVrParams() { return MomentumParams(kFedAvgClientMVr); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAvgClientMVr(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kFedAvgClientMVr); }

}  // namespace tributary::aggregator
