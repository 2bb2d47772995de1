// Top-k with the load-balancing loss α·E·Σ f_i·P_i, f the loads of the batch itself (Switch Transformer, Fedus et al. 2022, eq. 4–6, with
// f divided by K, so that an even load costs α for every K).
#include "client/core/moe/router.h"

namespace tributary::client {
namespace {

class Lbl : public Router {
 public:
  Lbl(RouterShape shape, double weight) : Router(shape), weight_(weight) {}
  Selection Select(std::span<const float>, std::span<const float> scores, const RouteContext&) override {
    return SelectTopK(scores, {}, shape().experts, shape().top_k);
  }
  bool selects_top_k() const override { return true; }
  std::vector<double> LossWeights(std::span<const int64_t> counts) const override { return BalanceWeights(weight_, LoadShare(counts)); }

 private:
  double weight_;  // α
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeLbl(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const double weight, params.Number("weight", 0, 1e6));
  return std::make_unique<Lbl>(shape, weight);
}

}  // namespace tributary::client
