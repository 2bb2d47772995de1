// Asynchronous FedAvg: every arrival is a commit, x⁺ = x + η_g d_i Δ_i (Fraboni et al., JMLR 24(110), 2023); with `weight: none` d_i = 1,
// and fast clients count more often.
#include "aggregator/core/asynchronous.h"

namespace tributary::aggregator {

std::vector<ParamInfo> AsyncFedAvgParams() { return Joined({ServerLrParam("1.0")}, FrequencyParams("online")); }

absl::StatusOr<std::unique_ptr<Strategy>> MakeAsyncFedAvg(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = AsyncFedAvgParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  AsynchronousWeights weights = ReadFrequency(reader);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = MakeAverageStep(server_lr, DivideBy::kConstant, 1),
                   .weights = MakeAsynchronousWeight(std::move(weights)),
                   .asynchronous = AsynchronousSpec{}});
}

}  // namespace tributary::aggregator
