// Balance without a loss: top-k of s + b, gates from s alone; after step n, with counts A and even load L,
//   sign          b_i += ε_n·sign(L − A_i)          (Wang et al. 2024, arXiv 2408.15664, Algorithm 1)
//   proportional  b_i += ε_n·(L − A_i)/L            (a step up the dual of max Σ s·x with even loads, arXiv 2512.03915)
// ε_n = step·{1, 1/√n, 1/n}, times the standard deviation of the step's scores where `scale_by_std` (a step must fit their spread). |b| <=
// clamp: without it the bias of a layer that cannot be balanced runs away.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/core/moe/biased_router.h"

namespace tributary::client {
namespace {

enum class Rule { kSign, kProportional };
enum class Schedule { kConstant, kSqrt, kInverse };

struct AlfOptions {
  Rule rule = Rule::kSign;
  Schedule schedule = Schedule::kConstant;
  double step = 0.001;
  bool scale_by_std = true;
  double clamp = 2.0;
};

class Alf : public BiasedRouter {
 public:
  Alf(RouterShape shape, const AlfOptions& options) : BiasedRouter(shape), options_(options) {}

  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    if (context.training) {
      for (const float s : scores) {
        sum_ += static_cast<double>(s);
        squares_ += static_cast<double>(s) * static_cast<double>(s);
      }
      seen_ += static_cast<double>(scores.size());
    }
    return BiasedRouter::Select(logits, scores, context);
  }

  void EndStep(std::span<const int64_t> counts) override {
    ++steps_;
    const double even = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0})) / static_cast<double>(shape().experts);
    double rate = options_.step;
    if (options_.schedule == Schedule::kSqrt) rate /= std::sqrt(static_cast<double>(steps_));
    if (options_.schedule == Schedule::kInverse) rate /= static_cast<double>(steps_);
    if (options_.scale_by_std && seen_ > 0) rate *= std::sqrt(std::max(0.0, squares_ / seen_ - sum_ / seen_ * (sum_ / seen_)));
    sum_ = squares_ = seen_ = 0;
    if (even <= 0 || !std::isfinite(rate)) return;
    for (size_t j = 0; j < bias_.size(); ++j) {
      const double lack = even - static_cast<double>(counts[j]);
      const double direction = options_.rule == Rule::kSign ? (lack > 0 ? 1.0 : lack < 0 ? -1.0 : 0.0) : lack / even;
      bias_[j] = static_cast<float>(std::clamp(static_cast<double>(bias_[j]) + rate * direction, -options_.clamp, options_.clamp));
    }
  }

 private:
  const AlfOptions options_;
  uint64_t steps_ = 0;
  double sum_ = 0, squares_ = 0, seen_ = 0;  // of the step's scores
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeAlf(const NamedParams& params, RouterShape shape) {
  AlfOptions options;
  TRIB_ASSIGN_OR_RETURN(const size_t rule, params.Choice("rule", {"sign", "proportional"}));
  options.rule = rule == 0 ? Rule::kSign : Rule::kProportional;
  TRIB_ASSIGN_OR_RETURN(const size_t schedule, params.Choice("schedule", {"constant", "sqrt", "inverse"}));
  options.schedule = schedule == 0 ? Schedule::kConstant : schedule == 1 ? Schedule::kSqrt : Schedule::kInverse;
  TRIB_ASSIGN_OR_RETURN(options.step, params.Number("step", 0, 1e3));
  TRIB_ASSIGN_OR_RETURN(options.scale_by_std, params.Flag("scale_by_std"));
  TRIB_ASSIGN_OR_RETURN(options.clamp, params.Number("clamp", 0, 1e3));
  return std::make_unique<Alf>(shape, options);
}

}  // namespace tributary::client
