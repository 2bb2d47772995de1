// FedAvg-M (= FedCM): momentum inside the client's step, v = (1−β) g; see momentum.h. Not fedavgm, which is momentum on the server.
#include "aggregator/core/momentum.h"

namespace tributary::aggregator {
namespace {

constexpr MomentumFamily kFedAvgClientM{.momentum = true};

}  // namespace

std::vector<ParamInfo> FedAvgClientMParams() { return MomentumParams(kFedAvgClientM); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAvgClientM(const StrategySpec& spec, const LocalSpec& local) { return MakeMomentum(spec, local, kFedAvgClientM); }

}  // namespace tributary::aggregator
