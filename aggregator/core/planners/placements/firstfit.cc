// FirstFit: the lowest id with RC >= demand; none: the largest RC, flagged (dataplane.md §9.1, a comparator).
#include "aggregator/core/planners/placement.h"

namespace tributary::aggregator {
namespace {

class FirstFit final : public Placer {
 public:
  explicit FirstFit(std::span<const PlacementNode> nodes) : tree_(nodes) {}
  Placed Place(double demand) override {
    const size_t first = tree_.FirstFitting(0, demand);
    return tree_.Take(first == tree_.size() ? tree_.Largest() : first, demand);
  }

 private:
  ResidualTree tree_;
};

}  // namespace

std::unique_ptr<Placer> MakeFirstFit(std::span<const PlacementNode> nodes) { return std::make_unique<FirstFit>(nodes); }

}  // namespace tributary::aggregator
