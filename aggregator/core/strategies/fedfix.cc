// FedFix: at every tick of `interval_s` what has arrived is applied once, x⁺ = x + η_g Σ d_iΔ_i, and goes to those who contributed; the
// others go on (Fraboni et al., JMLR 24(110), 2023). With `weight: none` d_i = p_i. Ticks are counted on the job's own clock, in
// nanoseconds; one at which nothing has come commits nothing and counts as a round.
#include <cmath>

#include "aggregator/core/asynchronous.h"

namespace tributary::aggregator {
namespace {

constexpr RealRange kIntervalRange{.low = 1e-9, .high = 1e9};

}  // namespace

std::vector<ParamInfo> FedFixParams() {
  return Joined({ServerLrParam("1.0"),
                 {.name = "interval_s", .default_value = "1", .range = kIntervalRange.ToString(), .help = "seconds between ticks; a job must state it"}},
                FrequencyParams("online"));
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedFix(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedFixParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  AsynchronousSpec asynchronous;
  asynchronous.interval = absl::Nanoseconds(std::llround(reader.Real("interval_s", kIntervalRange) * 1e9));
  AsynchronousWeights weights = ReadFrequency(reader);
  weights.plain = PlainWeight::kImportance;
  weights.interval = asynchronous.interval;
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = MakeAverageStep(server_lr, DivideBy::kConstant, 1),
                   .weights = MakeAsynchronousWeight(std::move(weights)),
                   .asynchronous = asynchronous,
                   .required = {"interval_s"}});
}

}  // namespace tributary::aggregator
