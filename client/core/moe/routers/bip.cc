// Balance by a linear program (Sun 2025, arXiv 2502.15451): max Σ s_ij·x_ij with Σ_j x_ij <= K, Σ_i x_ij <= L, x >= 0. Its dual is
// minimised alternately over tokens' prices p and experts' prices q, which are kept from batch to batch; tokens go to topK(s − q).
//   p_i = [max(0,)] (K+1)-th largest over j of s_ij − q_j;   q_j = [max(0,)] (⌊N·K/E⌋+1)-th largest over i of s_ij − p_i
// mode paper has both clamps. They let a token have fewer than K experts, which routing then does not: with skewed scores the load stays
// uneven whatever the iterations. mode equality (ours) has none and centres q, of which only differences matter.
// It looks at the whole batch, later tokens too: `freeze_in_eval` routes by the last prices outside training.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/core/moe/biased_router.h"

namespace tributary::client {
namespace {

class Bip : public BiasedRouter {
 public:
  Bip(RouterShape shape, bool equality, int64_t iterations, bool freeze_in_eval)
      : BiasedRouter(shape), equality_(equality), iterations_(iterations), freeze_in_eval_(freeze_in_eval) {}

  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    if (context.training || !freeze_in_eval_) Solve(scores);
    return BiasedRouter::Select(logits, scores, context);  // bias_ is −q
  }

 private:
  void Solve(std::span<const float> scores) {
    const size_t experts = shape().experts;
    const size_t tokens = scores.size() / experts;
    if (tokens == 0 || shape().top_k == experts) return;  // everybody serves everything
    const std::vector<float> before = bias_;
    std::vector<float> row(experts), column(tokens), scratch;
    std::vector<float> price(tokens);
    const size_t capacity = tokens * shape().top_k / experts;
    for (int64_t t = 0; t < iterations_; ++t) {
      for (size_t i = 0; i < tokens; ++i) {
        for (size_t j = 0; j < experts; ++j) row[j] = scores[i * experts + j] + bias_[j];
        price[i] = RankLargest(row, shape().top_k + 1, scratch);
        if (!equality_) price[i] = std::max(0.0F, price[i]);
      }
      for (size_t j = 0; j < experts; ++j) {
        for (size_t i = 0; i < tokens; ++i) column[i] = scores[i * experts + j] - price[i];
        float q = RankLargest(column, capacity + 1, scratch);
        if (!equality_) q = std::max(0.0F, q);
        bias_[j] = -q;
      }
      if (equality_) Centre();
    }
    // Scores that are not numbers have no prices.
    if (!std::all_of(bias_.begin(), bias_.end(), [](float b) { return std::isfinite(b); })) bias_ = before;
  }

  void Centre() {
    const double mean = std::accumulate(bias_.begin(), bias_.end(), 0.0) / static_cast<double>(bias_.size());
    for (float& b : bias_) b = static_cast<float>(static_cast<double>(b) - mean);
  }

  const bool equality_;
  const int64_t iterations_;
  const bool freeze_in_eval_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeBip(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const size_t mode, params.Choice("mode", {"equality", "paper"}));
  TRIB_ASSIGN_OR_RETURN(const int64_t iterations, params.Count("iterations"));
  if (iterations > 1000) return InvalidArgument("router 'bip', parameter 'iterations': expected at most 1000, got {}", iterations);
  TRIB_ASSIGN_OR_RETURN(const bool freeze_in_eval, params.Flag("freeze_in_eval"));
  return std::make_unique<Bip>(shape, mode == 0, iterations, freeze_in_eval);
}

}  // namespace tributary::client
