// Multi-Krum: the plain mean of the `keep` updates with the lowest Krum scores (Blanchard et al., NeurIPS 2017).
#include "aggregator/core/robust.h"

namespace tributary::aggregator {
namespace {

class MultiKrum final : public WholeReducer {
 public:
  MultiKrum(int64_t byzantine, int64_t keep) : byzantine_(byzantine), keep_(keep) {}
  absl::Status CheckCount(int64_t updates) const override {
    if (keep_ > updates) return InvalidArgument("keep {} is more than the {} updates of a commit", keep_, updates);
    return CheckKrumCount(updates, byzantine_);
  }
  absl::Status Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const override {
    const std::vector<size_t> order = ByKrumScore(input, byzantine_);
    const size_t keep = keep_ > 0 ? static_cast<size_t>(keep_) : order.size() - static_cast<size_t>(byzantine_);
    std::vector<double> factors(order.size(), 0.0);
    for (size_t k = 0; k < keep; ++k) factors[order[k]] = 1.0;
    MeanOf(input, factors, 0, out);
    return absl::OkStatus();
  }

 private:
  int64_t byzantine_;
  int64_t keep_;
};

}  // namespace

std::vector<ParamInfo> MultiKrumParams() {
  return {ServerLrParam("1.0"), ByzantineParam(),
          {.name = "keep", .default_value = "0", .range = "[0, inf)", .help = "updates whose mean is taken; 0: all but `byzantine`"}};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeMultiKrum(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = MultiKrumParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const int64_t byzantine = reader.Integer("byzantine", 0);
  const int64_t keep = reader.Integer("keep", 0);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeRobust(server_lr, std::make_unique<MultiKrum>(byzantine, keep));
}

}  // namespace tributary::aggregator
