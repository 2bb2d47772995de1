// FedAU: x⁺ = x + η_g · (1/N) Σ_{i∈S} ω_i Δ_i, N all registered clients, ω_i the mean of client i's participation intervals closed before
// this round (Wang and Ji, ICLR 2024, Algorithms 1 and 2; the estimator is client_table.h).
#include <cmath>

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

constexpr RealRange kCutoffRange{.low = 1, .high = kNoCutoff, .high_open = false};

class IntervalWeight final : public WeightRule {
 public:
  explicit IntervalWeight(double cutoff) : cutoff_(cutoff) {}
  absl::StatusOr<double> Weight(const WeightInput& input) const override {
    return MeanInterval(BeforeRound(input.clients->Find(input.client), input.round, cutoff_));
  }
  absl::StatusOr<double> Most() const override {
    if (std::isfinite(cutoff_)) return cutoff_;
    return InvalidArgument("cutoff: expected a finite number: with inf a client that was long away weighs without bound");
  }
  bool keeps_clients() const override { return true; }
  double cutoff() const override { return cutoff_; }

 private:
  double cutoff_;
};

}  // namespace

std::vector<ParamInfo> FedAuParams() {
  return {ServerLrParam("1.0"),
          {.name = "cutoff", .default_value = "50", .range = kCutoffRange.ToString(), .help = "longest interval the estimate counts, in rounds; inf: none"},
          ClientsParam()};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAu(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedAuParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const double cutoff = reader.Real("cutoff", kCutoffRange);
  const auto clients = static_cast<double>(reader.Integer("clients", 0));
  TRIB_RETURN_IF_ERROR(reader.Finish());
  if (cutoff != std::floor(cutoff)) return InvalidArgument("strategy 'fedau': cutoff: expected a whole number of rounds, got {}", cutoff);
  return Assemble({.step = MakeAverageStep(server_lr, DivideBy::kClients, clients), .weights = std::make_unique<IntervalWeight>(cutoff)});
}

}  // namespace tributary::aggregator
