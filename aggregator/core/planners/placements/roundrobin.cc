// RoundRobin: the next fitting node in id order after the last one taken, around the end; none: the largest RC, flagged
// (dataplane.md §9.1, a comparator).
#include "aggregator/core/planners/placement.h"

namespace tributary::aggregator {
namespace {

class RoundRobin final : public Placer {
 public:
  explicit RoundRobin(std::span<const PlacementNode> nodes) : tree_(nodes) {}
  Placed Place(double demand) override {
    size_t taken = tree_.FirstFitting(next_, demand);
    if (taken == tree_.size()) taken = tree_.FirstFitting(0, demand);
    if (taken == tree_.size()) taken = tree_.Largest();
    next_ = taken + 1;  // beyond the last one: FirstFitting finds nothing and the search begins anew
    return tree_.Take(taken, demand);
  }

 private:
  ResidualTree tree_;
  size_t next_ = 0;
};

}  // namespace

std::unique_ptr<Placer> MakeRoundRobin(std::span<const PlacementNode> nodes) { return std::make_unique<RoundRobin>(nodes); }

}  // namespace tributary::aggregator
