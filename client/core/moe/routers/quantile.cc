// Balance by quantiles, causal and with nothing to tune: tokens go to topK(s + b), and b_j is lowered by `rate` of the margin that would give
// expert j the even load (common/expert_quantile.h, with source). scope local: after each step, by the exact quantile of the step's batches.
// scope global: b is the server's, which moves it once a version by all clients' margins; the client counts them and leaves b alone.
// Used at once instead of at the next batch it would be bip's leak again.
#include <algorithm>
#include <cmath>

#include "client/core/moe/biased_router.h"
#include "common/expert_quantile.h"

namespace tributary::client {
namespace {

class Quantile : public BiasedRouter {
 public:
  Quantile(RouterShape shape, const ExpertQuantileRule& rule)
      : BiasedRouter(shape), rule_(rule), moved_(shape.experts, 0.0), margins_(rule.global ? shape.experts * rule.bins.bins() : 0) {}

  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    if (context.training && shape().top_k < shape().experts) Measure(scores);
    return BiasedRouter::Select(logits, scores, context);
  }

  void EndStep(std::span<const int64_t>) override {
    for (size_t j = 0; batches_ > 0 && j < bias_.size(); ++j) {
      const double quantile = moved_[j] / static_cast<double>(batches_);
      if (std::isfinite(quantile)) bias_[j] = static_cast<float>(static_cast<double>(bias_[j]) - rule_.rate * quantile);
    }
    std::fill(moved_.begin(), moved_.end(), 0.0);
    batches_ = 0;
  }
  bool server_owns_state() const override { return rule_.global; }
  std::vector<int64_t> margins() const override { return margins_; }

 private:
  void Measure(std::span<const float> scores) {
    const size_t experts = shape().experts;
    const size_t tokens = scores.size() / experts;
    if (tokens == 0) return;
    std::vector<float> row(experts), scratch, threshold(tokens), column(tokens);
    for (size_t i = 0; i < tokens; ++i) {
      for (size_t j = 0; j < experts; ++j) row[j] = scores[i * experts + j] + bias_[j];
      threshold[i] = RankLargest(row, shape().top_k + 1, scratch);
    }
    const auto rank = static_cast<size_t>(QuantileRank(static_cast<int64_t>(tokens), experts, shape().top_k));
    for (size_t j = 0; j < experts; ++j) {
      for (size_t i = 0; i < tokens; ++i) column[i] = scores[i * experts + j] + bias_[j] - threshold[i];
      if (rule_.global) {
        for (const float margin : column) ++margins_[j * rule_.bins.bins() + rule_.bins.Bin(static_cast<double>(margin))];
      } else {
        moved_[j] += static_cast<double>(RankLargest(column, rank, scratch));
      }
    }
    if (!rule_.global) ++batches_;
  }

  const ExpertQuantileRule rule_;
  std::vector<double> moved_;  // sum over the step's batches
  size_t batches_ = 0;
  std::vector<int64_t> margins_;  // [E × bins]
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeQuantile(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const ExpertQuantileRule rule, ExpertQuantileRule::Of(params));
  return std::make_unique<Quantile>(shape, rule);
}

}  // namespace tributary::client
