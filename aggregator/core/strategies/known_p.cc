// Averaging with stated participation probabilities: x⁺ = x + η_g · (1/N) Σ_{i∈S} Δ_i/p_i (the baseline of Wang and Ji, ICLR 2024).
// p = 1 for all is averaging over N, which is biased by the participation.
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {
namespace {

class InverseProbability final : public WeightRule {
 public:
  explicit InverseProbability(PerClient p) : p_(std::move(p)) {}
  absl::StatusOr<double> Weight(const WeightInput& input) const override {
    TRIB_ASSIGN_OR_RETURN(const double p, p_.Find(input.client, *input.clients));
    return 1.0 / p;
  }
  absl::StatusOr<double> Most() const override { return 1.0 / p_.Smallest(); }
  bool keeps_clients() const override { return true; }  // their names give the order of the values, their number divides

 private:
  PerClient p_;
};

}  // namespace

std::vector<ParamInfo> KnownPParams() {
  return {ServerLrParam("1.0"),
          {.name = "p", .default_value = "1", .range = "(0, 1]",
           .help = "participation probability: one value for all, a list in the order of the clients' names, or client=value, …"},
          ClientsParam()};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeKnownP(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = KnownPParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const auto clients = static_cast<double>(reader.Integer("clients", 0));
  absl::StatusOr<PerClient> p = PerClient::Parse(reader.Text("p"), 1.0);
  if (!p.ok()) reader.Fail("p", MessageOf(p.status()));
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return Assemble({.step = MakeAverageStep(server_lr, DivideBy::kClients, clients), .weights = std::make_unique<InverseProbability>(*std::move(p))});
}

}  // namespace tributary::aggregator
