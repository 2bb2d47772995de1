// Coordinate-wise median; the mean of the two middle values where their number is even (Yin et al., ICML 2018, Algorithm 1, option I).
#include "aggregator/core/robust.h"

namespace tributary::aggregator {
namespace {

class Median final : public CoordinateRule {
 protected:
  double Value(std::span<const double> ascending) const override {
    const size_t n = ascending.size();
    return n % 2 == 1 ? ascending[n / 2] : (ascending[n / 2 - 1] + ascending[n / 2]) / 2;
  }
};

}  // namespace

std::vector<ParamInfo> MedianParams() { return {ServerLrParam("1.0")}; }

absl::StatusOr<std::unique_ptr<Strategy>> MakeMedian(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = MedianParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeRobust(server_lr, std::make_unique<Median>());
}

}  // namespace tributary::aggregator
