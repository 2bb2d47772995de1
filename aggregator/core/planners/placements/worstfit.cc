// WorstFit: the largest RC, ties by lowest id, flagged where even that is too small (dataplane.md §9.1, a comparator).
#include "aggregator/core/planners/placement.h"

namespace tributary::aggregator {
namespace {

class WorstFit final : public Placer {
 public:
  explicit WorstFit(std::span<const PlacementNode> nodes) : order_(nodes) {}
  Placed Place(double demand) override { return order_.TakeLargest(demand); }

 private:
  ResidualOrder order_;
};

}  // namespace

std::unique_ptr<Placer> MakeWorstFit(std::span<const PlacementNode> nodes) { return std::make_unique<WorstFit>(nodes); }

}  // namespace tributary::aggregator
