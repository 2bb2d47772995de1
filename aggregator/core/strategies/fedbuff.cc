// FedBuff: at `buffer` updates x⁺ = x + η_g · Σ s(τ_i) w_i Δ_i / buffer (Nguyen et al., AISTATS 2022, Algorithm 1), divided by the number of
// updates, not by the sum of their weights. `restart: immediate` is Nguyen's; `restart: commit` is Fraboni's, where contributors wait.
#include "aggregator/core/asynchronous.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedBuffParams() {
  std::vector<ParamInfo> own = {
      ServerLrParam("1.0"),
      {.name = "buffer", .default_value = "10", .range = "[1, inf)", .help = "updates a commit takes"},
      {.name = "restart", .default_value = "immediate", .range = "immediate|commit", .help = "when a contributor gets the next model"},
      {.name = "once_per_buffer", .default_value = "false", .range = "true|false", .help = "a client's second update waits for the next buffer"}};
  return Joined(Joined(std::move(own), FrequencyParams("none")), StalenessParams());
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedBuff(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedBuffParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  AsynchronousSpec asynchronous;
  asynchronous.buffer = reader.Integer("buffer", 1);
  asynchronous.restart_at_commit = reader.Choice("restart") == "commit";
  asynchronous.once_per_buffer = reader.Flag("once_per_buffer");
  asynchronous.staleness = ReadStaleness(reader);
  AsynchronousWeights weights = ReadFrequency(reader);
  weights.plain = PlainWeight::kRelativeExamples;
  TRIB_RETURN_IF_ERROR(reader.Finish());
  const double divisor = weights.frequency == Frequency::kNone ? static_cast<double>(asynchronous.buffer) : 1.0;
  return Assemble({.step = MakeAverageStep(server_lr, DivideBy::kConstant, divisor),
                   .weights = MakeAsynchronousWeight(std::move(weights)),
                   .asynchronous = asynchronous});
}

}  // namespace tributary::aggregator
