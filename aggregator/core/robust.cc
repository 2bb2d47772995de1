#include "aggregator/core/robust.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tributary::aggregator {

absl::StatusOr<std::unique_ptr<Strategy>> MakeRobust(double server_lr, std::unique_ptr<WholeReducer> rule) {
  return Assemble({.step = MakeAverageStep(server_lr), .weights = MakeClaimedWeight(/*uniform=*/true), .whole = std::move(rule)});
}

absl::Status CoordinateRule::Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const {
  std::vector<double> values(input.updates.size());
  for (size_t i = 0; i < out.size(); ++i) {
    for (size_t k = 0; k < values.size(); ++k) values[k] = FloatAt(*input.layout, input.updates[k].flat, i);
    std::sort(values.begin(), values.end());
    out[i] = Value(values);
  }
  return absl::OkStatus();
}

double DistanceTo(const WholeInput& input, size_t k, std::span<const double> center) {
  double sum = 0;
  for (size_t i = 0; i < input.layout->trainable_count(); ++i) {
    const double gap = FloatAt(*input.layout, input.updates[k].flat, i) - center[i];
    sum += gap * gap;
  }
  return std::sqrt(sum);
}

std::vector<double> KrumScores(const WholeInput& input, int64_t byzantine) {
  const size_t n = input.updates.size();
  std::vector<std::vector<double>> squares(n, std::vector<double>(n, 0.0));
  for (size_t a = 0; a < n; ++a) {
    for (size_t b = a + 1; b < n; ++b) {
      double sum = 0;
      for (size_t i = 0; i < input.layout->trainable_count(); ++i) {
        const double gap = FloatAt(*input.layout, input.updates[a].flat, i) - FloatAt(*input.layout, input.updates[b].flat, i);
        sum += gap * gap;
      }
      squares[a][b] = squares[b][a] = sum;
    }
  }
  const size_t nearest = n - static_cast<size_t>(byzantine) - 2;
  std::vector<double> scores(n, 0.0);
  for (size_t a = 0; a < n; ++a) {
    std::vector<double> others;
    for (size_t b = 0; b < n; ++b) {
      if (b != a) others.push_back(squares[a][b]);
    }
    std::sort(others.begin(), others.end());
    for (size_t i = 0; i < nearest; ++i) scores[a] += others[i];
  }
  return scores;
}

std::vector<size_t> ByKrumScore(const WholeInput& input, int64_t byzantine) {
  const std::vector<double> scores = KrumScores(input, byzantine);
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  return order;
}

absl::Status CheckKrumCount(int64_t updates, int64_t byzantine) {
  if (updates >= 2 * byzantine + 3) return absl::OkStatus();
  return InvalidArgument("with byzantine {} Krum needs at least {} updates, got {}", byzantine, 2 * byzantine + 3, updates);
}

ParamInfo ByzantineParam() {
  return {.name = "byzantine", .default_value = "1", .range = "[0, inf)", .help = "f, arbitrary updates that are borne; a commit needs 2f + 3"};
}

}  // namespace tributary::aggregator
