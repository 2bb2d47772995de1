#include "aggregator/core/planners/placement.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "common/suggest.h"

namespace tributary::aggregator {

#define TRIB_PLANNER(name, Stem, help) std::unique_ptr<Placer> Make##Stem(std::span<const PlacementNode> nodes);
#include "aggregator/core/planners/placements/planners.def"
#undef TRIB_PLANNER

namespace {
constexpr PlannerEntry kPlanners[] = {
#define TRIB_PLANNER(name, Stem, help) {#name, Make##Stem, help},
#include "aggregator/core/planners/placements/planners.def"
#undef TRIB_PLANNER
};
}  // namespace

std::span<const PlannerEntry> Planners() { return kPlanners; }

const PlannerEntry* FindPlanner(std::string_view name) {
  for (const PlannerEntry& entry : kPlanners) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

absl::StatusOr<std::unique_ptr<Placer>> MakePlacer(std::string_view name, std::span<const PlacementNode> nodes) {
  const PlannerEntry* entry = FindPlanner(name);
  if (entry == nullptr) {
    std::vector<std::string> known;
    for (const PlannerEntry& other : kPlanners) known.emplace_back(other.name);
    return NotFound("no placement '{}'{}; known: {}", name, DidYouMean(name, known), fmt::join(known, ", "));
  }
  if (nodes.empty()) return InvalidArgument("placement {}: expected at least one node, got none", name);
  std::vector<PlacementNode> sorted(nodes.begin(), nodes.end());
  std::sort(sorted.begin(), sorted.end(), [](const PlacementNode& a, const PlacementNode& b) { return a.node < b.node; });
  for (size_t i = 0; i < sorted.size(); ++i) {
    if (!std::isfinite(sorted[i].residual)) {
      return InvalidArgument("placement {}, node {}: expected a finite residual capacity, got {}", name, sorted[i].node, sorted[i].residual);
    }
    if (i > 0 && sorted[i].node == sorted[i - 1].node) {
      return InvalidArgument("placement {}: expected each node once, got node {} twice", name, sorted[i].node);
    }
  }
  return entry->make(sorted);
}

absl::StatusOr<std::vector<Placed>> PlaceAll(std::string_view name, std::span<const PlacementNode> nodes, std::span<const double> demands) {
  TRIB_ASSIGN_OR_RETURN(const std::unique_ptr<Placer> placer, MakePlacer(name, nodes));
  for (size_t i = 0; i < demands.size(); ++i) {
    if (!std::isfinite(demands[i]) || demands[i] <= 0) {
      return InvalidArgument("placement {}, item {}: expected a finite demand above 0, got {}", name, i, demands[i]);
    }
  }
  std::vector<Placed> placed;
  placed.reserve(demands.size());
  for (const double demand : demands) placed.push_back(placer->Place(demand));
  return placed;
}

Placed ResidualOrder::TakeSmallestFitting(double demand) {
  const Set::iterator at = order_.lower_bound({.node = 0, .residual = demand});
  return Take(at == order_.end() ? Largest() : at, demand);
}

Placed ResidualOrder::TakeLargest(double demand) { return Take(Largest(), demand); }

// Among equals the set ends with the highest id; the lowest is asked for.
ResidualOrder::Set::iterator ResidualOrder::Largest() const { return order_.lower_bound({.node = 0, .residual = order_.rbegin()->residual}); }

Placed ResidualOrder::Take(Set::iterator at, double demand) {
  const Placed placed{.node = at->node, .overload = at->residual < demand};
  const Set::iterator hint = std::next(at);
  auto node = order_.extract(at);
  node.value().residual -= demand;
  // It moves down, and with best fit often stays where it was: right before the old successor. Else the search is O(log n).
  order_.insert(hint, std::move(node));
  return placed;
}

ResidualTree::ResidualTree(std::span<const PlacementNode> nodes)
    : leaves_(std::bit_ceil(nodes.size())), maximum_(2 * leaves_, -std::numeric_limits<double>::infinity()) {
  ids_.reserve(nodes.size());
  for (const PlacementNode& node : nodes) {
    maximum_[leaves_ + ids_.size()] = node.residual;
    ids_.push_back(node.node);
  }
  for (size_t i = leaves_; --i > 0;) maximum_[i] = std::max(maximum_[2 * i], maximum_[2 * i + 1]);
}

size_t ResidualTree::FirstFitting(size_t from, double demand) const {
  if (from >= size()) return size();
  size_t i = leaves_ + from;
  // Up, until a subtree that lies wholly at or after `from` holds a fitting node …
  while (maximum_[i] < demand) {
    while (i % 2 == 1) {
      i /= 2;
      if (i == 0) return size();
    }
    ++i;
  }
  // … and down to its first one.
  while (i < leaves_) i = maximum_[2 * i] >= demand ? 2 * i : 2 * i + 1;
  return i - leaves_;
}

size_t ResidualTree::Largest() const { return FirstFitting(0, maximum_[1]); }

Placed ResidualTree::Take(size_t position, double demand) {
  TRIB_DCHECK(position < size());
  size_t i = leaves_ + position;
  const Placed placed{.node = ids_[position], .overload = maximum_[i] < demand};
  maximum_[i] -= demand;
  for (i /= 2; i > 0; i /= 2) maximum_[i] = std::max(maximum_[2 * i], maximum_[2 * i + 1]);
  return placed;
}

}  // namespace tributary::aggregator
