// Balance without a loss: top-k of s + b, gates from s alone (Wang et al. 2024, arXiv 2408.15664). b is the server's, who moves it once a
// version by all clients' counts (common/expert_bias.h); with `local_steps` a client moves its copy by its own, too, after each step of a task.
#include <algorithm>
#include <cmath>

#include "client/core/moe/biased_router.h"
#include "common/expert_bias.h"

namespace tributary::client {
namespace {

class Alf : public BiasedRouter {
 public:
  Alf(RouterShape shape, const ExpertBiasRule& rule, bool local_steps) : BiasedRouter(shape), rule_(rule), local_steps_(local_steps) {}

  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    if (context.training && local_steps_) {
      for (const float s : scores) {
        sum_ += static_cast<double>(s);
        squares_ += static_cast<double>(s) * static_cast<double>(s);
      }
      seen_ += static_cast<double>(scores.size());
    }
    return BiasedRouter::Select(logits, scores, context);
  }

  void EndStep(std::span<const int64_t> counts) override {
    if (!local_steps_) return;
    const double deviation = seen_ > 0 ? std::sqrt(std::max(0.0, squares_ / seen_ - sum_ / seen_ * (sum_ / seen_))) : 1;
    std::vector<double> moved(bias_.begin(), bias_.end());
    rule_.Move(++steps_, counts, deviation, moved);
    std::transform(moved.begin(), moved.end(), bias_.begin(), [](double b) { return static_cast<float>(b); });
    sum_ = squares_ = seen_ = 0;
  }
  bool selects_top_k() const override { return !local_steps_; }
  bool server_owns_state() const override { return true; }

 private:
  const ExpertBiasRule rule_;
  const bool local_steps_;
  uint64_t steps_ = 0;
  double sum_ = 0, squares_ = 0, seen_ = 0;  // of the step's scores
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeAlf(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const ExpertBiasRule rule, ExpertBiasRule::Of(params));
  TRIB_ASSIGN_OR_RETURN(const bool local_steps, params.Flag("local_steps"));
  return std::make_unique<Alf>(shape, rule, local_steps);
}

}  // namespace tributary::client
