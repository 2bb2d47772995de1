// Experts choose tokens (Zhou et al. 2022): of each sequence of S tokens every expert takes its best c = max(⌊S·κ/E⌋, 1), so loads are
// exactly even and a token has as many experts as want it, perhaps none. κ: `capacity`, or by a schedule over the masked share of the
// sequence (capacity_schedule.h; arXiv 2604.01622). order post: by raw logits, gates a softmax over the experts that took the token; pre:
// by softmax scores, which are the gates. It looks ahead in the sequence: never for a causal model.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "client/core/moe/capacity_schedule.h"
#include "client/core/moe/router.h"
#include "common/check.h"

namespace tributary::client {
namespace {

class ExpertChoice : public Router {
 public:
  ExpertChoice(RouterShape shape, bool post, int64_t capacity, bool scheduled, CapacitySchedule schedule)
      : Router(shape), post_(post), capacity_(capacity), scheduled_(scheduled), schedule_(schedule) {}

  Selection Select(std::span<const float> logits, std::span<const float> scores, const RouteContext& context) override {
    const size_t experts = shape().experts;
    const size_t tokens = scores.size() / experts;
    const size_t length = context.sequence == 0 ? tokens : context.sequence;
    TRIB_CHECK(tokens == 0 || tokens % length == 0, "{} tokens in sequences of {}", tokens, length);
    const size_t sequences = tokens == 0 ? 0 : tokens / length;
    TRIB_CHECK(context.mask_ratio.empty() || context.mask_ratio.size() == sequences);
    const std::span<const float> key = post_ ? logits : scores;
    Selection selection{.tokens = tokens, .token = {}, .offsets = std::vector<int64_t>(experts + 1)};
    std::vector<int64_t> order(length);
    for (size_t j = 0; j < experts; ++j) {
      for (size_t b = 0; b < sequences; ++b) {
        const auto first = static_cast<int64_t>(b * length);
        std::iota(order.begin(), order.end(), first);
        const auto taken = order.begin() + static_cast<std::ptrdiff_t>(Taken(length, context.mask_ratio.empty() ? 0.0 : context.mask_ratio[b]));
        std::partial_sort(order.begin(), taken, order.end(), [&](int64_t a, int64_t c) {
          const float x = Key(key, a, j), y = Key(key, c, j);
          return x != y ? x > y : a < c;
        });
        std::sort(order.begin(), taken);
        selection.token.insert(selection.token.end(), order.begin(), taken);
      }
      selection.offsets[j + 1] = static_cast<int64_t>(selection.token.size());
    }
    return selection;
  }
  GateRule gate_rule() const override { return post_ ? GateRule::kSoftmaxOfChosen : GateRule::kScore; }

 private:
  float Key(std::span<const float> key, int64_t token, size_t expert) const {
    const float x = key[static_cast<size_t>(token) * shape().experts + expert];
    return x == x ? x : -HUGE_VALF;  // what is not a number comes last
  }
  size_t Taken(size_t length, double masked) const {
    const auto capacity = static_cast<size_t>(scheduled_ ? schedule_.At(masked) : capacity_);
    return std::min(length, std::max<size_t>(1, length * capacity / shape().experts));
  }

  const bool post_;
  const int64_t capacity_;
  const bool scheduled_;
  const CapacitySchedule schedule_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Router>> MakeExpertChoice(const NamedParams& params, RouterShape shape) {
  TRIB_ASSIGN_OR_RETURN(const int64_t capacity, params.Count("capacity"));
  TRIB_ASSIGN_OR_RETURN(const size_t order, params.Choice("order", {"post", "pre"}));
  TRIB_ASSIGN_OR_RETURN(const size_t kind, params.Choice("schedule", CapacitySchedule::Kinds()));
  TRIB_ASSIGN_OR_RETURN(const int64_t least, params.Count("capacity_min"));
  TRIB_ASSIGN_OR_RETURN(const int64_t most, params.Count("capacity_max"));
  TRIB_ASSIGN_OR_RETURN(const CapacitySchedule schedule, CapacitySchedule::Create(CapacitySchedule::Kinds()[kind], least, most));
  return std::make_unique<ExpertChoice>(shape, order == 0, capacity, kind != 0, schedule);
}

}  // namespace tributary::client
