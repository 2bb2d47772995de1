// The tree of a job as a pure state machine, driven by simulated seats in every order chance can think of.
#include "aggregator/coordinator/tree_state.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using Kind = TreeAction::Kind;

TreeAction Role(uint32_t seat, SeatRole role, uint64_t children) {
  return {.kind = Kind::kRole, .seat = seat, .role = role, .children = children};
}
TreeAction Connect(uint32_t node, uint32_t seat, uint32_t parent) {
  return {.kind = Kind::kConnect, .seat = seat, .node = node, .parent = parent};
}
TreeAction Start(uint32_t seat) { return {.kind = Kind::kStart, .seat = seat}; }

TEST(TreeStateTest, TheFirstCompleteLeafIsPromotedInPlaceAndTheOthersSendToIt) {
  TreeState tree({.leaves = 3});
  EXPECT_THAT(tree.Begin({true, true, true}, std::nullopt),
              ElementsAre(Role(0, SeatRole::kLeaf, 0), Role(1, SeatRole::kLeaf, 0), Role(2, SeatRole::kLeaf, 0)));
  EXPECT_TRUE(tree.untouched());
  EXPECT_THAT(tree.OnComplete(1, false), ElementsAre(Role(1, SeatRole::kTop, 0b101), Connect(0, 0, 1), Connect(2, 2, 1)));
  EXPECT_EQ(tree.top(), 1u);
  EXPECT_FALSE(tree.untouched());
  EXPECT_THAT(tree.OnComplete(0, false), ElementsAre());
  tree.OnMerged(0);
  EXPECT_FALSE(tree.done());
  EXPECT_THAT(tree.OnComplete(2, false), ElementsAre());
  EXPECT_TRUE(tree.may_merge(1, 2));
  EXPECT_FALSE(tree.may_merge(1, 0)) << "it is in already";
  EXPECT_FALSE(tree.may_merge(0, 2)) << "of another seat";
  tree.OnMerged(2);
  EXPECT_TRUE(tree.done());
  EXPECT_EQ(tree.role(1), SeatRole::kTop);
  EXPECT_EQ(tree.role(0), SeatRole::kParked);
}

TEST(TreeStateTest, WithoutReuseEveryParentIsAFreshSeat) {
  TreeState tree({.leaves = 4, .fan_in = 2, .reuse = false});
  tree.Begin({true, true, true, true}, std::nullopt);
  EXPECT_THAT(tree.OnComplete(3, false), ElementsAre(Start(4), Role(4, SeatRole::kMiddle, 0b1100), Connect(2, 2, 4), Connect(3, 3, 4)));
  EXPECT_THAT(tree.OnComplete(2, false), ElementsAre());
  tree.OnMerged(2);
  tree.OnMerged(3);
  EXPECT_THAT(tree.OnComplete(4, false), ElementsAre(Start(5), Role(5, SeatRole::kTop, 0b110000), Connect(5, 4, 5)));
  EXPECT_EQ(tree.top(), 5u);
}

TEST(TreeStateTest, ALeafRisesThroughMiddleToTop) {
  TreeState tree({.leaves = 4, .fan_in = 2});
  tree.Begin({true, true, true, true}, std::nullopt);
  EXPECT_THAT(tree.OnComplete(0, false), ElementsAre(Role(0, SeatRole::kMiddle, 0b10), Connect(1, 1, 0)));
  tree.OnComplete(1, false);
  tree.OnMerged(1);
  EXPECT_THAT(tree.OnComplete(0, false), ElementsAre(Role(0, SeatRole::kTop, 0b100010)));  // the other middle is nobody yet
  EXPECT_THAT(tree.OnComplete(2, false), ElementsAre(Role(2, SeatRole::kMiddle, 0b1000), Connect(3, 3, 2), Connect(5, 2, 0)));
  tree.OnComplete(3, false);
  tree.OnMerged(3);
  EXPECT_FALSE(tree.done());
  EXPECT_THAT(tree.OnComplete(2, false), ElementsAre());
  tree.OnMerged(5);
  EXPECT_TRUE(tree.done());
}

TEST(TreeStateTest, ALeafWithoutUpdatesTakesNoPart) {
  TreeState tree({.leaves = 3});
  tree.Begin({true, true, true}, std::nullopt);
  tree.OnComplete(0, false);
  EXPECT_THAT(tree.Close({true, false, true}), ElementsAre(Role(0, SeatRole::kTop, 0b100), Role(2, SeatRole::kLeaf, 0)));
  tree.OnComplete(2, false);
  tree.OnMerged(2);
  EXPECT_TRUE(tree.done());
}

TEST(TreeStateTest, ALeafWhoseUpdatesWereAllRefusedIsNotWaitedFor) {
  TreeState tree({.leaves = 2});
  tree.Begin({true, true}, std::nullopt);
  EXPECT_THAT(tree.OnComplete(0, true), ElementsAre()) << "nothing in it: not worth a promotion";
  EXPECT_THAT(tree.OnComplete(1, false), ElementsAre(Role(1, SeatRole::kTop, 0)));
  EXPECT_TRUE(tree.done());
}

TEST(TreeStateTest, NoUpdatesAtAllEndWithoutATop) {
  for (const uint32_t fan_in : {0u, 2u}) {
    TreeState tree({.leaves = 5, .fan_in = fan_in});
    tree.Begin(std::vector<bool>(5, true), std::nullopt);
    tree.Close(std::vector<bool>(5, false));
    EXPECT_TRUE(tree.done());
    EXPECT_FALSE(tree.top().has_value());
  }
}

TEST(TreeStateTest, ALaterPlanOpensALeafAndTheTopWaitsForItToo) {
  TreeState tree({.leaves = 3});
  tree.Begin({true, true, false}, std::nullopt);
  EXPECT_FALSE(tree.may_open(0)) << "it is open";
  tree.OnComplete(0, false);
  EXPECT_FALSE(tree.may_open(0)) << "it is the top";
  ASSERT_TRUE(tree.may_open(2));
  EXPECT_THAT(tree.Open(2), ElementsAre(Role(0, SeatRole::kTop, 0b110), Role(2, SeatRole::kLeaf, 0)));
  EXPECT_THAT(tree.Drop(1), ElementsAre(Role(0, SeatRole::kTop, 0b100))) << "it was given nothing";
  EXPECT_TRUE(tree.may_open(1));
  EXPECT_THAT(tree.OnComplete(2, false), ElementsAre(Connect(2, 2, 0)));
  tree.OnMerged(2);
  tree.Close({true, false, true});
  EXPECT_TRUE(tree.done());
  EXPECT_FALSE(tree.may_open(1)) << "nothing more comes";
}

TEST(TreeStateTest, NoLeafIsOpenedBelowAMiddleThatMayHaveSentItsPartial) {
  TreeState tree({.leaves = 4, .fan_in = 2});
  tree.Begin({true, false, false, false}, std::nullopt);
  tree.OnComplete(0, false);  // a middle now: all it waits for is in
  EXPECT_FALSE(tree.may_open(1));
  EXPECT_TRUE(tree.may_open(2)) << "its middle is nobody yet";
}

TEST(TreeStateTest, AHolderOfSumsIsTheTopFromTheBeginning) {
  TreeState tree({.leaves = 3});
  EXPECT_THAT(tree.Begin({true, true, true}, 1),
              ElementsAre(Role(1, SeatRole::kTop, 0b101), Role(0, SeatRole::kLeaf, 0), Role(2, SeatRole::kLeaf, 0), Connect(0, 0, 1),
                          Connect(2, 2, 1)));
  EXPECT_FALSE(tree.open_leaf(1));
  TreeState fresh({.leaves = 1, .reuse = false});
  EXPECT_THAT(fresh.Begin({true}, 1), ElementsAre(Role(1, SeatRole::kTop, 0b1), Role(0, SeatRole::kLeaf, 0), Connect(0, 0, 1)));
}

// Seats as the workers are: each has the updates in its sums, what it was told, and mail.
struct SimulatedSeat {
  std::multiset<int> sums;
  SeatRole role = SeatRole::kParked;
  uint64_t children = 0, merged = 0;
  bool told_complete = true;  // under the last role
  bool published = false;
  std::map<uint32_t, uint32_t> inbox;  // node -> seat whose partial it is, once that is published
};

void Simulate(uint32_t seed) {
  std::mt19937 random(seed);
  const auto chance = [&](uint32_t one_in) { return random() % one_in == 0; };
  const TreeState::Options options{.leaves = 1 + static_cast<uint32_t>(random() % 9), .fan_in = chance(2) ? 0 : 2 + static_cast<uint32_t>(random() % 3), .reuse = !chance(3)};
  TreeState tree(options);
  std::map<uint32_t, SimulatedSeat> seats;
  std::multiset<int> expected;
  uint32_t processes = 0;
  int next_update = 0;
  struct Edge {
    uint32_t node, from, to;
  };
  std::vector<Edge> edges;
  std::vector<bool> has_updates;
  std::vector<uint32_t> goal(options.leaves), given(options.leaves);
  const auto act = [&](const std::vector<TreeAction>& actions) {
    for (const TreeAction& action : actions) {
      switch (action.kind) {
        case Kind::kStart:
          ASSERT_FALSE(seats.contains(action.seat));
          seats[action.seat];
          ++processes;
          break;
        case Kind::kRole: {
          SimulatedSeat& seat = seats.at(action.seat);
          ASSERT_GE(action.role, seat.role) << "a seat only rises";
          seat.role = action.role;
          seat.children = action.children;
          seat.told_complete = false;
          break;
        }
        case Kind::kConnect:
          ASSERT_NE(action.seat, action.parent);
          edges.push_back({action.node, action.seat, action.parent});
          break;
      }
    }
  };
  for (uint32_t i = 0; i < options.leaves; ++i) seats[i];
  std::optional<uint32_t> holder;
  for (int lap = 0; lap < 3; ++lap) {
    edges.clear();
    for (auto& [number, seat] : seats) {
      const auto sums = seat.sums;
      seat = {};
      if (holder == number) seat.sums = sums;
    }
    std::vector<bool> used(options.leaves);
    for (uint32_t i = 0; i < options.leaves; ++i) {
      used[i] = !chance(5);
      goal[i] = static_cast<uint32_t>(random() % 4);
      given[i] = 0;
    }
    act(tree.Begin(used, holder));
    std::vector<bool> dropped(options.leaves);
    bool closing = false;
    for (int step = 0; !tree.done() || !tree.closed(); ++step) {
      ASSERT_LT(step, 10'000) << "seed " << seed;
      // One of: an update, a completion, a merge, the close, a new plan.
      const uint32_t what = random() % 5;
      if (what == 0 && !closing) {
        const uint32_t leaf = random() % options.leaves;
        if (tree.open_leaf(leaf) && given[leaf] < goal[leaf]) {
          seats[leaf].sums.insert(next_update);
          expected.insert(next_update++);
          ++given[leaf];
        }
      } else if (what == 1) {
        auto at = std::next(seats.begin(), static_cast<long>(random() % seats.size()));
        auto& [number, seat] = *at;
        const bool goal_met = number >= options.leaves || closing || given[number] == goal[number];
        if (seat.told_complete || seat.role == SeatRole::kTop || seat.role == SeatRole::kParked || !goal_met ||
            (seat.children & ~seat.merged) != 0) {
          continue;
        }
        seat.told_complete = seat.published = true;
        if (!tree.may_complete(number)) {  // it had nothing, and the close was quicker
          ASSERT_TRUE(seat.sums.empty() && (closing || dropped[number])) << "seed " << seed;
          continue;
        }
        act(tree.OnComplete(number, seat.sums.empty()));
        if (!seat.told_complete) seat.published = false;  // promoted
      } else if (what == 2 && !edges.empty()) {
        const Edge edge = edges[random() % edges.size()];
        SimulatedSeat& to = seats.at(edge.to);
        const SimulatedSeat& from = seats.at(edge.from);
        if (!from.published || from.sums.empty() || (to.merged >> edge.node & 1) != 0 || (to.children >> edge.node & 1) == 0) continue;
        to.sums.insert(from.sums.begin(), from.sums.end());
        to.merged |= uint64_t{1} << edge.node;
        ASSERT_TRUE(tree.may_merge(edge.to, edge.node));
        tree.OnMerged(edge.node);
      } else if (what == 3 && !closing && chance(10)) {
        closing = true;
        has_updates.assign(options.leaves, false);
        for (uint32_t i = 0; i < options.leaves; ++i) has_updates[i] = given[i] > 0;
        act(tree.Close(has_updates));
      } else if (what == 4 && !closing && chance(3)) {
        const uint32_t leaf = random() % options.leaves;
        if (given[leaf] == 0 && tree.may_open(leaf)) {
          goal[leaf] = 1 + static_cast<uint32_t>(random() % 3);
          dropped[leaf] = false;
          act(tree.Open(leaf));
        } else if (given[leaf] == 0 && tree.open_leaf(leaf)) {
          dropped[leaf] = true;
          act(tree.Drop(leaf));
        }
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
    holder = tree.top();
    if (expected.empty()) {
      EXPECT_FALSE(holder.has_value());
    } else {
      ASSERT_TRUE(holder.has_value()) << "seed " << seed;
      ASSERT_EQ(seats.at(*holder).sums, expected) << "seed " << seed << " lap " << lap;
    }
  }
  if (options.reuse) {
    EXPECT_EQ(processes, 0u) << "promotion starts nothing";
  }
}

TEST(TreeStateTest, EveryUpdateReachesTheTopExactlyOnceInAnyOrder) {
  for (uint32_t seed = 1; seed <= 2000; ++seed) {
    Simulate(seed);
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tributary::aggregator
