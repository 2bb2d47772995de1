// Which node gets an update (dataplane.md §9.1). Demand and residual capacity RC are in updates: one update asks for 1.
//
//   bestfit     among nodes with RC >= demand the smallest RC, ties by lowest id: load gathers on few nodes, so that partials meet in
//               shared memory and only nodes used − 1 of them cross the network
//   worstfit    the largest RC, ties by lowest id: load spreads (LIFL's baseline)
//   firstfit    the lowest id with RC >= demand
//   roundrobin  the next node in id order, after the last one taken, with RC >= demand
//
// Where no node fits, all of them take the largest RC (ties by lowest id) and say `overload`: an update is never turned away here.
// The table of all is placements/planners.def: adding one is one file and one line there, which also enrols it in the contract suite
// (tests/unit/core/placement_contract_test.cc).
// Source: LIFL (MLSys 2024) §5.1; dataplane.md §9.1.
// Pure and deterministic: same calls, same answers. Thread-compatible. Place is O(log n).
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace tributary::aggregator {

struct PlacementNode {
  uint32_t node = 0;     // id, unique
  double residual = 0;   // RC; may be below 0 on an overloaded node
  bool operator==(const PlacementNode&) const = default;
};

struct Placed {
  uint32_t node = 0;
  bool overload = false;  // its RC was below the demand
  bool operator==(const Placed&) const = default;
};

// One of the entries, over its own copy of the nodes.
class Placer {
 public:
  virtual ~Placer() = default;
  // Chooses a node and takes `demand` (finite, > 0: checked by PlaceAll and PlanRound) from its RC.
  virtual Placed Place(double demand) = 0;
};

// `nodes`: at least one, unique ids, finite RC, in rising order of id (MakePlacer sees to that).
using MakePlacerFunction = std::unique_ptr<Placer> (*)(std::span<const PlacementNode> nodes);

struct PlannerEntry {
  std::string_view name;
  MakePlacerFunction make;
  std::string_view help;
};

// The table, in .def order.
std::span<const PlannerEntry> Planners();
const PlannerEntry* FindPlanner(std::string_view name);
// Errors: NOT_FOUND for an unknown name (with the nearest and all known ones); INVALID_ARGUMENT for no nodes, two of one id, or an
// RC that is not finite.
absl::StatusOr<std::unique_ptr<Placer>> MakePlacer(std::string_view name, std::span<const PlacementNode> nodes);

// Places demands in their order. Errors: those of MakePlacer; INVALID_ARGUMENT for a demand that is not finite and > 0.
absl::StatusOr<std::vector<Placed>> PlaceAll(std::string_view name, std::span<const PlacementNode> nodes, std::span<const double> demands);

// ---- for the entries ----

// Nodes ordered by (RC, id). Take moves a node from its old place to its new one without allocating.
class ResidualOrder {
 public:
  explicit ResidualOrder(std::span<const PlacementNode> nodes) : order_(nodes.begin(), nodes.end()) {}
  // The fitting node of smallest RC, or the largest with `overload`.
  Placed TakeSmallestFitting(double demand);
  // The node of largest RC, whether it fits or not.
  Placed TakeLargest(double demand);

 private:
  struct Less {
    bool operator()(const PlacementNode& a, const PlacementNode& b) const {
      return a.residual < b.residual || (a.residual == b.residual && a.node < b.node);
    }
  };
  using Set = std::set<PlacementNode, Less>;
  Placed Take(Set::iterator at, double demand);
  Set::iterator Largest() const;
  Set order_;
};

// Nodes in id order below a tree of maxima.
class ResidualTree {
 public:
  explicit ResidualTree(std::span<const PlacementNode> nodes);
  size_t size() const { return ids_.size(); }
  // Position (in id order) of the first node at or after `from` with RC >= demand; size() if there is none.
  size_t FirstFitting(size_t from, double demand) const;
  // Position of the node of largest RC, lowest id.
  size_t Largest() const;
  Placed Take(size_t position, double demand);

 private:
  size_t leaves_ = 1;           // a power of two
  std::vector<double> maximum_;  // [1] is the root, children of i are 2i and 2i + 1
  std::vector<uint32_t> ids_;
};

}  // namespace tributary::aggregator
