// Centered clipping: v ← v + mean((Δ_i − v)·min(1, radius/‖Δ_i − v‖)), some times over, from 0 or from the last commit's v
// (Karimireddy, He, Jaggi, ICML 2021). Norms are over the trainable elements; buffers take the coordinate-wise median.
#include <algorithm>

#include "aggregator/core/robust.h"

namespace tributary::aggregator {
namespace {

constexpr const char* kPrevious = "aggregate";
constexpr RealRange kRadiusRange{.low = 0, .low_open = true};

class CenteredClipping final : public WholeReducer {
 public:
  CenteredClipping(double radius, int64_t iterations, bool from_previous)
      : radius_(radius), iterations_(iterations), from_previous_(from_previous) {}

  std::vector<std::string> state_vectors() const override {
    return from_previous_ ? std::vector<std::string>{kPrevious} : std::vector<std::string>{};
  }

  absl::Status Reduce(const WholeInput& input, StrategyState& state, std::span<double> out) const override {
    const size_t trainable = input.layout->trainable_count();
    const size_t n = input.updates.size();
    std::vector<double> center(trainable, 0.0);
    if (from_previous_) center = state.vectors.at(kPrevious);
    std::vector<double> step(trainable);
    for (int64_t iteration = 0; iteration < iterations_; ++iteration) {
      std::fill(step.begin(), step.end(), 0.0);
      for (size_t k = 0; k < n; ++k) {
        const double distance = DistanceTo(input, k, center);
        const double factor = distance > radius_ ? radius_ / distance : 1.0;
        for (size_t i = 0; i < trainable; ++i) step[i] += factor * (FloatAt(*input.layout, input.updates[k].flat, i) - center[i]);
      }
      for (size_t i = 0; i < trainable; ++i) center[i] += step[i] / static_cast<double>(n);
    }
    std::copy(center.begin(), center.end(), out.begin());
    std::vector<double> values(n);
    for (size_t i = trainable; i < out.size(); ++i) {
      for (size_t k = 0; k < n; ++k) values[k] = FloatAt(*input.layout, input.updates[k].flat, i);
      std::sort(values.begin(), values.end());
      out[i] = (values[(n - 1) / 2] + values[n / 2]) / 2;
    }
    if (from_previous_) state.vectors.at(kPrevious) = std::move(center);
    return absl::OkStatus();
  }

 private:
  double radius_;
  int64_t iterations_;
  bool from_previous_;
};

}  // namespace

std::vector<ParamInfo> CenteredClippingParams() {
  return {ServerLrParam("1.0"),
          {.name = "radius", .default_value = "1.0", .range = kRadiusRange.ToString(), .help = "longest distance from the center that counts in full"},
          {.name = "iterations", .default_value = "3", .range = "[1, inf)", .help = "steps of the center"},
          {.name = "start", .default_value = "zero", .range = "zero|previous", .help = "where the center starts: at 0, or at the last commit's"}};
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeCenteredClipping(const StrategySpec& spec, const LocalSpec&) {
  const std::vector<ParamInfo> params = CenteredClippingParams();
  ParamReader reader(spec, params);
  const double server_lr = reader.Real("server_lr", kServerLrRange);
  const double radius = reader.Real("radius", kRadiusRange);
  const int64_t iterations = reader.Integer("iterations", 1);
  const bool from_previous = reader.Choice("start") == "previous";
  TRIB_RETURN_IF_ERROR(reader.Finish());
  return MakeRobust(server_lr, std::make_unique<CenteredClipping>(radius, iterations, from_previous));
}

}  // namespace tributary::aggregator
