// FedAvg: x⁺ = x + η_g · Σ w_i Δ_i / Σ w_i (McMahan et al., AISTATS 2017, Algorithm 1; η_g = 1 there).
#include "aggregator/core/adapters.h"
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedAvgParams() { return {ServerLrParam("1.0"), WeightingParam("examples"), AdapterErrorParam()}; }

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAvg(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedAvgParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const bool uniform = reader.Choice("weighting") == "uniform";
  static_cast<void>(reader.Choice("adapter_error"));  // of a model of adapters, see adapters.h
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = MakeAverageStep(server_lr), .weights = MakeClaimedWeight(uniform)});
}

}  // namespace tributary::aggregator
