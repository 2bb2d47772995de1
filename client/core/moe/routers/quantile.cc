// Balance by quantiles, causal and with nothing to tune: tokens go to topK(s + b). With a_i the (K+1)-th largest over j of s_ij + b_j and
// margins m_ij = s_ij + b_j − a_i, expert j would have the even load if its bias were lower by the (round(K·N/E)+1)-th largest of its
// margins; after the step b_j moves by `rate` of that. (Known from a description of code, moe_lora note §3.4.)
// Used at once instead of at the next batch it would be bip's leak again.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/core/moe/biased_router.h"

namespace tributary::client {
namespace {

class Quantile : public BiasedRouter {
 public:
  Quantile(RouterShape shape, double rate) : BiasedRouter(shape), rate_(rate), moved_(shape.experts, 0.0) {}

  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    if (context.training) Measure(scores);
    return BiasedRouter::Select(logits, scores, context);
  }

  void EndStep(std::span<const int64_t>) override {
    for (size_t j = 0; batches_ > 0 && j < bias_.size(); ++j) {
      const double quantile = moved_[j] / static_cast<double>(batches_);
      if (std::isfinite(quantile)) bias_[j] = static_cast<float>(static_cast<double>(bias_[j]) - rate_ * quantile);
    }
    std::fill(moved_.begin(), moved_.end(), 0.0);
    batches_ = 0;
  }

 private:
  void Measure(std::span<const float> scores) {
    const size_t experts = shape().experts;
    const size_t tokens = scores.size() / experts;
    if (tokens == 0 || shape().top_k == experts) return;
    std::vector<float> row(experts), scratch, threshold(tokens), column(tokens);
    for (size_t i = 0; i < tokens; ++i) {
      for (size_t j = 0; j < experts; ++j) row[j] = scores[i * experts + j] + bias_[j];
      threshold[i] = RankLargest(row, shape().top_k + 1, scratch);
    }
    const auto even = static_cast<size_t>(std::llround(static_cast<double>(shape().top_k * tokens) / static_cast<double>(experts)));
    for (size_t j = 0; j < experts; ++j) {
      for (size_t i = 0; i < tokens; ++i) column[i] = scores[i * experts + j] + bias_[j] - threshold[i];
      moved_[j] += static_cast<double>(RankLargest(column, std::min(even + 1, tokens), scratch));
    }
    ++batches_;
  }

  const double rate_;
  std::vector<double> moved_;  // sum over the step's batches
  size_t batches_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeQuantile(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const double rate, params.Number("rate", 0, 1));
  return std::make_unique<Quantile>(shape, rate);
}

}  // namespace tributary::client
