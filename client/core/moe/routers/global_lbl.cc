// Top-k with the load-balancing loss over the loads of all clients (Qiu et al. 2025, arXiv 2501.11873), which lets experts specialise by
// client: f = (N_srv·f̄ + N_loc·f_loc) / (N_srv + N_loc) of the last version's load f̄ over N_srv tokens, and a small local loss beside it.
// Before a global load has come the loss is the local one. `ema` is the server's: how much of f̄ stays from version to version (moe_state.h).
#include "client/core/moe/router.h"

#include <numeric>

#include "common/check.h"

namespace tributary::client {
namespace {

class GlobalLbl : public Router {
 public:
  GlobalLbl(RouterShape shape, double weight, double local_fraction) : Router(shape), weight_(weight), local_fraction_(local_fraction) {}

  Selection Select(std::span<const float>, std::span<const float> scores, const RouteContext&) override {
    return SelectTopK(scores, {}, shape().experts, shape().top_k);
  }
  bool selects_top_k() const override { return true; }
  void SetGlobalLoad(MoeLayerLoad load) override {
    TRIB_CHECK(load.share.size() == shape().experts && load.tokens >= 0);
    load_ = std::move(load);
  }
  std::vector<double> LossWeights(std::span<const int64_t> counts) const override {
    const std::vector<double> local = LoadShare(counts);
    if (load_.tokens <= 0) return BalanceWeights(weight_, local);
    const double here = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0})) / static_cast<double>(shape().top_k);
    std::vector<double> mixed(local.size());
    for (size_t j = 0; j < mixed.size(); ++j) {
      const double together = (load_.tokens * load_.share[j] + here * local[j]) / (load_.tokens + here);
      mixed[j] = together + local_fraction_ * local[j];
    }
    return BalanceWeights(weight_, mixed);
  }

 private:
  double weight_;          // α
  double local_fraction_;  // of α, for the local loss
  MoeLayerLoad load_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeGlobalLbl(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const double weight, params.Number("weight", 0, 1e6));
  TRIB_ASSIGN_OR_RETURN(const double local_fraction, params.Number("local_fraction", 0, 1));
  TRIB_RETURN_IF_ERROR(params.Number("ema", 0, 0.999999).status());
  return std::make_unique<GlobalLbl>(shape, weight, local_fraction);
}

}  // namespace tributary::client
