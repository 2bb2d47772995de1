#include "aggregator/core/planners/placement.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

std::vector<uint32_t> Nodes(const std::vector<Placed>& placed) {
  std::vector<uint32_t> nodes;
  for (const Placed& place : placed) nodes.push_back(place.node);
  return nodes;
}

std::vector<Placed> Place(std::string_view name, std::vector<PlacementNode> nodes, std::vector<double> demands) {
  auto placed = PlaceAll(name, nodes, demands);
  EXPECT_THAT(placed, IsOk());
  return placed.ok() ? *placed : std::vector<Placed>{};
}

std::map<uint32_t, int> Counts(std::string_view name, size_t nodes, double residual, size_t updates) {
  std::vector<PlacementNode> equal;
  for (size_t i = 0; i < nodes; ++i) equal.push_back({.node = static_cast<uint32_t>(i), .residual = residual});
  std::map<uint32_t, int> counts;
  for (const Placed& place : Place(name, equal, std::vector<double>(updates, 1))) ++counts[place.node];
  return counts;
}

// T8 of dataplane.md §13.
TEST(PlacementTest, BestFitUsesOneThreeAndFiveNodesForTwentySixtyAndAHundred) {
  EXPECT_EQ(Counts("bestfit", 5, 20, 20).size(), 1u);
  EXPECT_EQ(Counts("bestfit", 5, 20, 60).size(), 3u);
  EXPECT_EQ(Counts("bestfit", 5, 20, 100).size(), 5u);
  for (const char* name : {"worstfit", "roundrobin"}) {
    for (const size_t updates : {20u, 60u, 100u}) EXPECT_EQ(Counts(name, 5, 20, updates).size(), 5u) << name << " " << updates;
  }
}

TEST(PlacementTest, BestFitTakesTheSmallestThatFits) {
  EXPECT_THAT(Nodes(Place("bestfit", {{1, 9}, {2, 3}, {3, 5}}, {4, 3, 4, 1})), ElementsAre(3, 2, 1, 3));
}

TEST(PlacementTest, TiesGoToTheLowestId) {
  EXPECT_THAT(Nodes(Place("bestfit", {{7, 2}, {3, 2}, {5, 2}}, {1, 1, 1})), ElementsAre(3, 3, 5));
  EXPECT_THAT(Nodes(Place("worstfit", {{7, 2}, {3, 2}, {5, 2}}, {1, 1, 1, 1})), ElementsAre(3, 5, 7, 3));
}

TEST(PlacementTest, FirstFitTakesTheLowestIdThatFits) {
  EXPECT_THAT(Nodes(Place("firstfit", {{2, 9}, {1, 3}, {3, 5}}, {4, 3, 5, 5})), ElementsAre(2, 1, 2, 3));
}

TEST(PlacementTest, RoundRobinGoesOnAfterTheLastOneAndSkipsWhatDoesNotFit) {
  EXPECT_THAT(Nodes(Place("roundrobin", {{1, 2}, {2, 1}, {3, 2}}, {1, 1, 1, 1, 1})), ElementsAre(1, 2, 3, 1, 3));
}

TEST(PlacementTest, WhereNothingFitsTheLargestRestTakesItAndSaysOverload) {
  for (const PlannerEntry& entry : Planners()) {
    const std::vector<Placed> placed = Place(entry.name, {{4, 1}, {2, 2}, {9, 2}}, {3, 3, 3});
    EXPECT_THAT(placed, ElementsAre(Placed{2, true}, Placed{9, true}, Placed{4, true})) << entry.name;
  }
}

TEST(PlacementTest, AnExactFitIsNoOverload) {
  for (const PlannerEntry& entry : Planners()) EXPECT_FALSE(Place(entry.name, {{1, 3}}, {3})[0].overload) << entry.name;
}

TEST(PlacementTest, OverloadedNodesMayStartBelowZero) {
  for (const PlannerEntry& entry : Planners()) {
    EXPECT_THAT(Place(entry.name, {{1, -5}, {2, -1}}, {1}), ElementsAre(Placed{2, true})) << entry.name;
  }
}

// Each entry against a plain scan over all nodes, with random capacities and demands.
TEST(PlacementTest, EqualsAPlainScan) {
  for (const uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
    std::mt19937_64 random(seed);
    std::vector<PlacementNode> nodes;
    const size_t count = 1 + random() % 70;
    for (size_t i = 0; i < count; ++i) nodes.push_back({.node = static_cast<uint32_t>(3 * i + 1), .residual = static_cast<double>(random() % 40) / 4});
    std::vector<double> demands;
    for (size_t i = 0; i < 6 * count; ++i) demands.push_back(static_cast<double>(1 + random() % 8) / 4);
    for (const std::string name : {"bestfit", "worstfit", "firstfit", "roundrobin"}) {
      std::vector<PlacementNode> rest = nodes;
      std::vector<Placed> expected;
      size_t turn = 0;
      for (const double demand : demands) {
        size_t chosen = count;
        for (size_t k = 0; k < count; ++k) {
          const size_t i = name == "roundrobin" ? (turn + k) % count : k;
          if (rest[i].residual < demand) continue;
          const bool better = chosen == count || (name == "bestfit" && rest[i].residual < rest[chosen].residual) ||
                              (name == "worstfit" && rest[i].residual > rest[chosen].residual);
          if (better) chosen = i;
        }
        const bool overload = chosen == count;
        if (overload) {
          chosen = 0;
          for (size_t i = 1; i < count; ++i) chosen = rest[i].residual > rest[chosen].residual ? i : chosen;
        }
        rest[chosen].residual -= demand;
        turn = chosen + 1;
        expected.push_back({.node = rest[chosen].node, .overload = overload});
      }
      std::shuffle(nodes.begin(), nodes.end(), random);  // the order they are given in means nothing
      EXPECT_EQ(Place(name, nodes, demands), expected) << name << ", seed " << seed;
      std::sort(nodes.begin(), nodes.end(), [](const PlacementNode& a, const PlacementNode& b) { return a.node < b.node; });
    }
  }
}

TEST(PlacementTest, AnUnknownNameNamesTheNearestAndAllKnownOnes) {
  const PlacementNode node{.node = 1, .residual = 1};
  EXPECT_THAT(MakePlacer("bestfti", {&node, 1}), StatusIs(absl::StatusCode::kNotFound, AllOf(HasSubstr("did you mean 'bestfit'"),
                                                                                            HasSubstr("bestfit, worstfit, firstfit, roundrobin"))));
  EXPECT_EQ(FindPlanner("bestfit"), &Planners()[0]);
}

TEST(PlacementTest, ImpossibleInputIsRefused) {
  const double one = 1;
  EXPECT_THAT(PlaceAll("bestfit", {}, {&one, 1}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at least one node")));
  const std::vector<PlacementNode> twice = {{1, 2}, {2, 2}, {1, 3}};
  EXPECT_THAT(PlaceAll("bestfit", twice, {&one, 1}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("node 1 twice")));
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const PlacementNode node{.node = 1, .residual = bad};
    EXPECT_THAT(PlaceAll("bestfit", {&node, 1}, {&one, 1}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("residual capacity")));
  }
  const PlacementNode node{.node = 1, .residual = 1};
  for (const double bad : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THAT(PlaceAll("bestfit", {&node, 1}, {&bad, 1}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("item 0")));
  }
}

}  // namespace
}  // namespace tributary::aggregator
