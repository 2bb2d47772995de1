// FedProx: clients add μ(y − x) to their gradient; the server is FedAvg's (Li et al., MLSys 2020, Algorithm 2). `mu` is a parameter of
// the job, from which the client's solver takes it.
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

constexpr RealRange kMuRange{.low = 0};

}  // namespace

std::vector<ParamInfo> FedProxParams() {
  return {ServerLrParam("1.0"),
          {.name = "mu", .default_value = "0.1", .range = kMuRange.ToString(), .help = "proximal term of the client's step: mu (y - x); 0 is FedAvg"},
          WeightingParam("examples")};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedProx(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedProxParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  static_cast<void>(reader.Real("mu", kMuRange));  // the client's; checked here, at submission
  const bool uniform = reader.Choice("weighting") == "uniform";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = MakeAverageStep(server_lr), .weights = MakeClaimedWeight(uniform)});
}

}  // namespace tributary::aggregator
