// Krum: the one update with the smallest sum of squared distances to its n − f − 2 nearest others; n ≥ 2f + 3 (Blanchard et al.,
// NeurIPS 2017).
#include "aggregator/core/robust.h"

namespace tributary::aggregator {
namespace {

class Krum final : public WholeReducer {
 public:
  explicit Krum(int64_t byzantine) : byzantine_(byzantine) {}
  absl::Status CheckCount(int64_t updates) const override { return CheckKrumCount(updates, byzantine_); }
  absl::Status Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const override {
    const size_t chosen = ByKrumScore(input, byzantine_).front();
    for (size_t i = 0; i < out.size(); ++i) out[i] = FloatAt(*input.layout, input.updates[chosen].flat, i);
    return absl::OkStatus();
  }

 private:
  int64_t byzantine_;
};

}  // namespace

std::vector<ParamInfo> KrumParams() { return {ServerLrParam("1.0"), ByzantineParam()}; }

absl::StatusOr<std::unique_ptr<Strategy>> MakeKrum(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = KrumParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const int64_t byzantine = reader.Integer("byzantine", 0);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeRobust(server_lr, std::make_unique<Krum>(byzantine));
}

}  // namespace tributary::aggregator
