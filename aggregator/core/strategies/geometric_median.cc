// Geometric median by Weiszfeld's iteration from the mean, weights 1/max(eps, distance) (Pillutla, Kakade, Harchaoui 2022).
// Distances are over the trainable elements; buffers take the last weights.
#include <algorithm>

#include "aggregator/core/robust.h"

namespace tributary::aggregator {
namespace {

constexpr RealRange kEpsRange{.low = 0, .low_open = true};

class GeometricMedian final : public WholeReducer {
 public:
  GeometricMedian(int64_t iterations, double eps) : iterations_(iterations), eps_(eps) {}
  absl::Status Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const override {
    std::vector<double> factors(input.updates.size(), 1.0);
    MeanOf(input, factors, 0, out);
    std::vector<double> before(out.size());
    for (int64_t iteration = 0; iteration < iterations_; ++iteration) {
      std::copy(out.begin(), out.end(), before.begin());
      for (size_t k = 0; k < factors.size(); ++k) factors[k] = 1.0 / std::max(eps_, DistanceTo(input, k, out));
      MeanOf(input, factors, 0, out);
      if (std::equal(out.begin(), out.end(), before.begin())) break;  // nothing moves any more
    }
    return absl::OkStatus();
  }

 private:
  int64_t iterations_;
  double eps_;
};

}  // namespace

std::vector<ParamInfo> GeometricMedianParams() {
  return {ServerLrParam("1.0"),
          {.name = "iterations", .default_value = "200", .range = "[1, inf)", .help = "steps of Weiszfeld's iteration at most"},
          {.name = "eps", .default_value = "1e-06", .range = kEpsRange.ToString(), .help = "smallest distance, against division by zero"}};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeGeometricMedian(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = GeometricMedianParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const int64_t iterations = reader.Integer("iterations", 1);
  const double eps = reader.Real("eps", kEpsRange);
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeRobust(server_lr, std::make_unique<GeometricMedian>(iterations, eps));
}

}  // namespace tributary::aggregator
