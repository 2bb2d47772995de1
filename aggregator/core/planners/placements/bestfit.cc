// BestFit: the smallest RC >= demand, ties by lowest id; none: the largest RC, flagged (dataplane.md §9.1).
#include "aggregator/core/planners/placement.h"

namespace tributary::aggregator {
namespace {

class BestFit final : public Placer {
 public:
  explicit BestFit(std::span<const PlacementNode> nodes) : order_(nodes) {}
  Placed Place(double demand) override { return order_.TakeSmallestFitting(demand); }

 private:
  ResidualOrder order_;
};

}  // namespace

std::unique_ptr<Placer> MakeBestFit(std::span<const PlacementNode> nodes) { return std::make_unique<BestFit>(nodes); }

}  // namespace tributary::aggregator
