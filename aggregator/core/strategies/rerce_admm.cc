// RERCE-Fed: x⁺ = mean of the participants' w_i; clients get s = 2x − x⁻ (Lari, Arablouei, Gogineni, Werner, arXiv 2409.13451). With
// `continual` every client goes on in every round, sends 2w_i⁺ − w_i when it is scheduled, and x is the mean of all rows received last.
// `rho` is the client's; it is checked here, at submission.
#include "aggregator/core/admm.h"

namespace tributary::aggregator {

std::vector<ParamInfo> RerceAdmmParams() {
  return {RhoParam(),
          {.name = "continual", .default_value = "false", .range = "true|false", .help = "unscheduled clients go on too; keeps all updates and a row per client"},
          {.name = "compat_authors", .default_value = "false", .range = "true|false", .help = "s = 2x in version 2, as in the authors' script"},
          ClientsParam()};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeRerceAdmm(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = RerceAdmmParams();
  ParamReader reader(spec, params);
  static_cast<void>(reader.Real("rho", kRhoRange));
  const bool continual = reader.Flag("continual");
  const bool compat_authors = reader.Flag("compat_authors");
  const int64_t clients = reader.Integer("clients", 0);
  if (continual && compat_authors) reader.Fail("compat_authors", "it has no meaning with continual");
  if (!continual && clients != 0) reader.Fail("clients", "it has a meaning with continual only");
  TRIB_RETURN_IF_ERROR(reader.Finish());
  if (continual) return MakeTableStrategy(ClientStateKind::kShared, clients);
  return MakeExtrapolatedMean(compat_authors);
}

}  // namespace tributary::aggregator
