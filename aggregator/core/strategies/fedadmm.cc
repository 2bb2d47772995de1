// FedADMM, primal first with a table: x = mean of all clients' u_i = w_i + λ_i/ρ, sent last; rows and clients start at x⁰ (algorithms.md §11.2).
// `rho` and `order` are the client's; they are checked here, at submission.
#include "aggregator/core/admm.h"

namespace tributary::aggregator {

std::vector<ParamInfo> FedAdmmParams() {
  return {RhoParam(),
          {.name = "order", .default_value = "primal_first", .range = "primal_first|dual_first", .help = "which of w_i and its dual is updated first"},
          ClientsParam()};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeFedAdmm(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = FedAdmmParams();
  ParamReader reader(spec, params);
  static_cast<void>(reader.Real("rho", kRhoRange));
  static_cast<void>(reader.Choice("order"));
  const int64_t clients = reader.Integer("clients", 0);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeTableStrategy(ClientStateKind::kOwn, clients);
}

}  // namespace tributary::aggregator
