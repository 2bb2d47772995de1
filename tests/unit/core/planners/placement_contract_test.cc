// What every entry of planners.def must satisfy, alone and in a round's plan (style.md §4). The suite also runs deliberately wrong
// entries, each of which it must reject.
#include <gmock/gmock.h>

#include <map>
#include <ostream>
#include <random>

#include "aggregator/core/planners/plan.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {

std::ostream& operator<<(std::ostream& out, const PlannerEntry& entry) { return out << entry.name; }

namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class PlacementContract {
 public:
  explicit PlacementContract(const PlannerEntry& entry) : entry_(entry) {}

  // What is broken, in words; empty if nothing is.
  std::vector<std::string> Check() {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
      for (const HierarchyShape shape : {HierarchyShape::kTree, HierarchyShape::kShard, HierarchyShape::kFlat}) CheckOne(seed, shape);
    }
    return {broken_.begin(), broken_.end()};
  }

 private:
  void Expect(bool holds, const std::string& what) {
    if (!holds) broken_.insert(what);
  }

  void CheckOne(uint64_t seed, HierarchyShape shape) {
    std::mt19937_64 random(seed);
    std::vector<NodeState> nodes;
    const size_t count = 1 + random() % 9;
    for (size_t i = 0; i < count; ++i) {
      nodes.push_back({.node = static_cast<uint32_t>(2 * i), .residual = static_cast<double>(random() % 30), .load = static_cast<double>(random() % 50),
                       .cores = 1 + static_cast<int64_t>(random() % 16), .quota = 1 + static_cast<int64_t>(random() % 16)});
    }
    PlanRequest request{.key = {.round = seed, .epoch = 1}, .updates = 1 + static_cast<int64_t>(random() % 120)};
    request.hierarchy.shape = shape;
    request.hierarchy.placement = &entry_;
    request.nodes = nodes;
    const absl::StatusOr<RoundPlan> plan = PlanRound(request);
    Expect(plan.ok(), "no plan: " + MessageOf(plan.status()));
    if (!plan.ok()) return;
    Expect(CheckPlan(*plan).ok(), "a plan that is none: " + MessageOf(CheckPlan(*plan)));
    EachUpdateHasOnePathToTheRoot(*plan, request.updates);
    NoNodeIsOverCapacityUnlessFlagged(*plan, nodes);
    const absl::StatusOr<RoundPlan> again = PlanRound(request);
    Expect(again.ok() && *again == *plan, "the same request gives another plan");
    std::reverse(nodes.begin(), nodes.end());
    request.nodes = nodes;
    const absl::StatusOr<RoundPlan> reversed = PlanRound(request);
    Expect(reversed.ok() && *reversed == *plan, "the order of nodes changes the plan");
  }

  void EachUpdateHasOnePathToTheRoot(const RoundPlan& plan, int64_t updates) {
    Expect(static_cast<int64_t>(plan.route.size()) == updates, "not every update has a place");
    std::vector<int64_t> inputs(plan.roles.size(), 0);  // updates below each role
    std::map<int32_t, int64_t> roots;
    for (int32_t at : plan.route) {
      size_t steps = 0;
      while (at >= 0 && static_cast<size_t>(at) < plan.roles.size() && steps++ <= plan.roles.size()) {
        ++inputs[static_cast<size_t>(at)];
        if (plan.roles[static_cast<size_t>(at)].parent < 0) ++roots[at];
        at = plan.roles[static_cast<size_t>(at)].parent;
      }
      Expect(steps <= plan.roles.size(), "a path without end");
    }
    Expect(roots.size() == 1 && roots.begin()->second == updates, "not every update comes to the one root");
    for (size_t i = 0; i < plan.roles.size(); ++i) {
      if (plan.roles[i].role == Role::kLeaf) Expect(inputs[i] == plan.roles[i].goal, "a leaf's goal is not what comes to it");
    }
    Expect(plan.partials_between_nodes() == static_cast<int64_t>(plan.nodes.size()) - 1, "partials between nodes are not nodes used − 1");
  }

  void NoNodeIsOverCapacityUnlessFlagged(const RoundPlan& plan, const std::vector<NodeState>& nodes) {
    for (const RoundPlan::NodeShare& share : plan.nodes) {
      for (const NodeState& node : nodes) {
        if (node.node != share.node || static_cast<double>(share.updates) <= node.residual) continue;
        Expect(share.overloads > 0, "a node is over its capacity without a flag");
      }
    }
  }

  const PlannerEntry& entry_;
  std::set<std::string> broken_;
};

class PlannerContractTest : public ::testing::TestWithParam<PlannerEntry> {};
INSTANTIATE_TEST_SUITE_P(All, PlannerContractTest, ::testing::ValuesIn(Planners().begin(), Planners().end()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(PlannerContractTest, KeepsTheContract) { EXPECT_THAT(PlacementContract(GetParam()).Check(), IsEmpty()); }

TEST_P(PlannerContractTest, SaysOverloadExactlyWhenNothingFits) {
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    std::mt19937_64 random(seed);
    std::vector<PlacementNode> nodes;
    for (uint32_t i = 0; i < 20; ++i) nodes.push_back({.node = i, .residual = static_cast<double>(random() % 10)});
    std::vector<PlacementNode> rest = nodes;
    const auto placer = MakePlacer(GetParam().name, nodes);
    ASSERT_THAT(placer, tributary::testing::IsOk());
    for (int i = 0; i < 200; ++i) {
      const double demand = static_cast<double>(1 + random() % 4);
      const bool fits = std::any_of(rest.begin(), rest.end(), [&](const PlacementNode& node) { return node.residual >= demand; });
      const Placed placed = (*placer)->Place(demand);
      ASSERT_LT(placed.node, rest.size());
      // WorstFit alone looks at the largest only, which fits whenever anything does.
      EXPECT_EQ(placed.overload, !fits) << "seed " << seed << ", item " << i;
      EXPECT_EQ(placed.overload, rest[placed.node].residual < demand);
      rest[placed.node].residual -= demand;
    }
  }
}

TEST_P(PlannerContractTest, DescribesItself) { EXPECT_FALSE(GetParam().help.empty()); }

// ---- entries that the suite must reject ----

template <typename Choose>
class WrongPlacer final : public Placer {
 public:
  WrongPlacer(std::span<const PlacementNode> nodes, Choose choose) : nodes_(nodes.begin(), nodes.end()), choose_(choose) {}
  Placed Place(double demand) override { return choose_(nodes_, demand); }

 private:
  std::vector<PlacementNode> nodes_;
  Choose choose_;
};
template <typename Choose>
std::unique_ptr<Placer> Wrong(std::span<const PlacementNode> nodes, Choose choose) {
  return std::make_unique<WrongPlacer<Choose>>(nodes, choose);
}

TEST(PlannerContractSuiteTest, RejectsAPlacerThatHidesOverload) {
  const PlannerEntry entry{.name = "crammer", .make = [](std::span<const PlacementNode> nodes) {
                             return Wrong(nodes, [](const auto& all, double) { return Placed{.node = all.front().node}; });
                           }, .help = "everything on the first node"};
  EXPECT_THAT(PlacementContract(entry).Check(), Contains(HasSubstr("over its capacity without a flag")));
}

TEST(PlannerContractSuiteTest, RejectsAPlacerThatRemembersEarlierRounds) {
  static uint64_t calls;
  calls = 0;
  const PlannerEntry entry{.name = "drifter", .make = [](std::span<const PlacementNode> nodes) {
                             return Wrong(nodes, [](const auto& all, double) { return Placed{.node = all[calls++ % all.size()].node, .overload = true}; });
                           }, .help = "state outside the placer"};
  EXPECT_THAT(PlacementContract(entry).Check(), Contains(HasSubstr("gives another plan")));
}

TEST(PlannerContractSuiteTest, RejectsAPlacerThatInventsNodes) {
  const PlannerEntry entry{.name = "inventor", .make = [](std::span<const PlacementNode> nodes) {
                             return Wrong(nodes, [](const auto&, double) { return Placed{.node = 77}; });
                           }, .help = "a node that is not there"};
  EXPECT_THAT(PlacementContract(entry).Check(), Contains(HasSubstr("placement 'inventor' chose node 77")));
}

}  // namespace
}  // namespace tributary::aggregator
