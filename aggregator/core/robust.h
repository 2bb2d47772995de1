// What the rules share that bear some arbitrary updates (algorithms.md §12): unweighted, from all updates at once, in fp64, ties to the
// lower client id. The server takes server_lr of the result.
#pragma once

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

absl::StatusOr<std::unique_ptr<Strategy>> MakeRobust(double server_lr, std::unique_ptr<WholeReducer> rule);

// Rules that work coordinate by coordinate: out[i] = rule(the updates' values at i, ascending), buffers too.
class CoordinateRule : public WholeReducer {
 public:
  absl::Status Reduce(const WholeInput& input, StrategyState& state, std::span<double> out) const final;

 protected:
  virtual double Value(std::span<const double> ascending) const = 0;
};

// ‖x_k − center‖₂ over the trainable elements.
double DistanceTo(const WholeInput& input, size_t k, std::span<const double> center);

// Krum's score of every update: the sum of its n − f − 2 smallest squared distances to the others (Blanchard et al., NeurIPS 2017).
std::vector<double> KrumScores(const WholeInput& input, int64_t byzantine);
// Updates by rising score, ties by client id.
std::vector<size_t> ByKrumScore(const WholeInput& input, int64_t byzantine);
absl::Status CheckKrumCount(int64_t updates, int64_t byzantine);
ParamInfo ByzantineParam();

}  // namespace tributary::aggregator
