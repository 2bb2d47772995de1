#include "aggregator/core/planners/plan.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/bench/planner_roles.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

// ---- EWMA: T10b of dataplane.md §13 ----

std::vector<double> Smoothed(double weight, EwmaSide on, const std::vector<double>& samples) {
  Ewma ewma(weight, on);
  std::vector<double> values;
  for (const double sample : samples) values.push_back(ewma.Next(sample));
  return values;
}

TEST(EwmaTest, StartsAtTheFirstSample) {
  for (const double weight : {0.0, 0.3, 0.7, 1.0}) {
    for (const EwmaSide on : {EwmaSide::kHistory, EwmaSide::kSample}) {
      Ewma ewma(weight, on);
      EXPECT_EQ(ewma.value(), std::nullopt);
      EXPECT_EQ(ewma.Next(17.3), 17.3);
      EXPECT_EQ(ewma.value(), 17.3);
    }
  }
}

TEST(EwmaTest, WeightsZeroAndOneAreExact) {
  const std::vector<double> samples = {3.1, 7.7, 0.1, 1e9, 0};
  const std::vector<double> stuck(samples.size(), samples[0]);
  EXPECT_EQ(Smoothed(0, EwmaSide::kHistory, samples), samples);
  EXPECT_EQ(Smoothed(1, EwmaSide::kSample, samples), samples);
  EXPECT_EQ(Smoothed(1, EwmaSide::kHistory, samples), stuck);
  EXPECT_EQ(Smoothed(0, EwmaSide::kSample, samples), stuck);
}

TEST(EwmaTest, DyadicWeightsGiveTheClosedFormToTheLastBit) {
  // With h a small power of two and whole samples every intermediate value is a double.
  const std::vector<double> samples = {16, 3, 8, 1, 0, 5, 12, 7};
  for (const double h : {0.5, 0.25, 0.75}) {
    for (const EwmaSide on : {EwmaSide::kHistory, EwmaSide::kSample}) {
      const double keep = on == EwmaSide::kHistory ? h : 1 - h;
      const std::vector<double> values = Smoothed(h, on, samples);
      for (size_t t = 0; t < samples.size(); ++t) {
        // Q̄_t = keep^t·Q_0 + Σ_{s=1..t} (1 − keep)·keep^(t−s)·Q_s
        double closed = std::pow(keep, t) * samples[0];
        for (size_t s = 1; s <= t; ++s) closed += (1 - keep) * std::pow(keep, t - s) * samples[s];
        EXPECT_EQ(values[t], closed) << "h " << h << ", t " << t;
      }
    }
  }
}

TEST(EwmaTest, SevenTenthsGiveTheClosedFormInWholeNumbers) {
  // 10^t·Q̄_t is a whole number: computed as such and compared as doubles, within the roundings of t steps.
  const std::vector<int64_t> samples = {40, 3, 100, 0, 7, 7, 7, 250, 1, 60, 2, 2, 90, 4, 5, 6};
  for (const EwmaSide on : {EwmaSide::kHistory, EwmaSide::kSample}) {
    const int64_t keep = on == EwmaSide::kHistory ? 7 : 3;
    const std::vector<double> values = Smoothed(0.7, on, std::vector<double>(samples.begin(), samples.end()));
    int64_t numerator = samples[0];
    int64_t denominator = 1;
    for (size_t t = 0; t < samples.size(); ++t) {
      if (t > 0) {
        numerator = keep * numerator + (10 - keep) * samples[t] * denominator;
        denominator *= 10;
      }
      const double closed = static_cast<double>(static_cast<long double>(numerator) / static_cast<long double>(denominator));
      EXPECT_NEAR(values[t], closed, 4 * std::numeric_limits<double>::epsilon() * 250) << "t " << t;
    }
  }
}

TEST(EwmaTest, AConstantLoadStaysItself) {
  Ewma ewma(0.7, EwmaSide::kHistory);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(ewma.Next(0.1 + 0.2), 0.1 + 0.2);
}

// ---- leaves and goals ----

TEST(LeavesTest, AreTheLoadOverTheFanInRoundedUp) {
  const LeafLimits wide{.cores = 100, .quota = 100, .updates = 100};
  EXPECT_EQ(LeavesFor(0, 2, wide), 1);
  EXPECT_EQ(LeavesFor(2, 2, wide), 1);
  EXPECT_EQ(LeavesFor(2.01, 2, wide), 2);
  EXPECT_EQ(LeavesFor(20, 2, wide), 10);
  EXPECT_EQ(LeavesFor(20, 3, wide), 7);
  EXPECT_EQ(LeavesFor(-5, 2, wide), 1);
  EXPECT_EQ(LeavesFor(0.1 + 0.2 + 3.7, 2, wide), 2);  // 4.000000000000001 would be 3
}

TEST(LeavesTest, AreClampedByCoresQuotaAndUpdates) {
  EXPECT_EQ(LeavesFor(100, 2, {.cores = 8, .quota = 16, .updates = 40}), 8);
  EXPECT_EQ(LeavesFor(100, 2, {.cores = 16, .quota = 5, .updates = 40}), 5);
  EXPECT_EQ(LeavesFor(100, 2, {.cores = 16, .quota = 16, .updates = 3}), 3);
  EXPECT_EQ(LeavesFor(100, 2, {.cores = 16, .quota = 16, .updates = 0}), 0);
  EXPECT_EQ(LeavesFor(1e300, 1, {.cores = 4, .quota = 4, .updates = 9}), 4);
}

TEST(ShareGoalsTest, FreshLeavesDifferByAtMostOne) {
  EXPECT_THAT(ShareGoals(7, {}, 3), ElementsAre(3, 2, 2));
  EXPECT_THAT(ShareGoals(6, {}, 3), ElementsAre(2, 2, 2));
  EXPECT_THAT(ShareGoals(2, {}, 3), ElementsAre(1, 1));
  EXPECT_THAT(ShareGoals(0, {}, 3), IsEmpty());
}

TEST(ShareGoalsTest, WaterFillsWhatLeavesHaveAlready) {
  const std::vector<int64_t> taken = {5, 1, 2};
  EXPECT_THAT(ShareGoals(4, taken, 3), ElementsAre(5, 4, 3));
  EXPECT_THAT(ShareGoals(1, taken, 3), ElementsAre(5, 2, 2));
  EXPECT_THAT(ShareGoals(9, taken, 4), ElementsAre(5, 4, 4, 4));
  EXPECT_THAT(ShareGoals(0, taken, 3), ElementsAre(5, 1, 2));
}

TEST(ShareGoalsTest, TooManyLeavesCloseEarlyTheIdleOnesFirst) {
  EXPECT_THAT(ShareGoals(4, std::vector<int64_t>{0, 3, 1}, 2), ElementsAre(0, 4, 4));
  EXPECT_THAT(ShareGoals(4, std::vector<int64_t>{0, 3, 1}, 1), ElementsAre(0, 3, 5));
  EXPECT_THAT(ShareGoals(4, std::vector<int64_t>{0, 0, 0}, 1), ElementsAre(4, 0, 0));
}

TEST(ShareGoalsTest, LosesAndInventsNothing) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    std::mt19937_64 random(seed);
    std::vector<int64_t> taken(random() % 8);
    for (int64_t& t : taken) t = static_cast<int64_t>(random() % 12);
    const int64_t remaining = static_cast<int64_t>(random() % 60), leaves = 1 + static_cast<int64_t>(random() % 10);
    const std::vector<int64_t> goals = ShareGoals(remaining, taken, leaves);
    ASSERT_GE(goals.size(), taken.size());
    EXPECT_EQ(std::accumulate(goals.begin(), goals.end(), int64_t{0}), remaining + std::accumulate(taken.begin(), taken.end(), int64_t{0}));
    int64_t raised = 0;
    for (size_t i = 0; i < goals.size(); ++i) {
      const int64_t had = i < taken.size() ? taken[i] : 0;
      EXPECT_GE(goals[i], had) << "seed " << seed;
      EXPECT_GE(goals[i], i < taken.size() ? 0 : 1) << "seed " << seed;
      raised += goals[i] > had;
    }
    EXPECT_LE(raised, leaves) << "seed " << seed;
  }
}

// ---- plans ----

struct Rig {
  std::vector<NodeState> nodes;
  PlanRequest request;
};

Rig MakeRig(int64_t updates, size_t nodes, double residual, std::optional<double> load, HierarchyShape shape = HierarchyShape::kTree) {
  Rig rig;
  for (size_t i = 0; i < nodes; ++i) {
    rig.nodes.push_back({.node = static_cast<uint32_t>(i), .residual = residual, .load = load, .cores = 16, .quota = 16});
  }
  rig.request = {.key = {.round = 3, .epoch = 1}, .updates = updates};
  rig.request.hierarchy.shape = shape;
  rig.request.hierarchy.placement = FindPlanner("bestfit");
  return rig;
}

absl::StatusOr<RoundPlan> PlanOf(Rig& rig) {
  rig.request.nodes = rig.nodes;
  return PlanRound(rig.request);
}

// "node:role:goal>parent", one word a role.
std::string Drawn(const RoundPlan& plan) {
  std::string text;
  for (const auto& role : plan.roles) {
    text += fmt::format("{}{}:{}:{}>{}", text.empty() ? "" : " ", role.node, RoleName(role.role), role.goal, role.parent);
    if (role.shards > 1) text += fmt::format("x{}", role.shards);
  }
  return text;
}

TEST(PlanTest, OneNodeAndOneLeafIsTheRoot) {
  Rig rig = MakeRig(5, 1, 20, 1.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(Drawn(plan), "0:leaf:5>-1");
  EXPECT_EQ(plan.partials_between_nodes(), 0);
}

TEST(PlanTest, OneNodeWithSeveralLeavesHasATopInsteadOfAMiddle) {
  Rig rig = MakeRig(8, 1, 20, 6.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(Drawn(plan), "0:leaf:3>3 0:leaf:3>3 0:leaf:2>3 0:top:3>-1");
  EXPECT_THAT(plan.route, ElementsAre(0, 1, 2, 0, 1, 2, 0, 1));
}

TEST(PlanTest, ALoneLeafActsAsItsNodesMiddleAndTheTopStandsWhereMostUpdatesAre) {
  Rig rig = MakeRig(26, 3, 20, 4.0);
  rig.nodes[1].load = 1.0;
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(Drawn(plan), "0:leaf:10>2 0:leaf:10>2 0:middle:2>4 1:leaf:6>4 0:top:2>-1");
  EXPECT_EQ(plan.partials_between_nodes(), 1);
}

TEST(PlanTest, ShardsAreOneLeafOfSeveralWorkers) {
  Rig rig = MakeRig(30, 2, 20, 6.0, HierarchyShape::kShard);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(Drawn(plan), "0:leaf:20>2x3 1:leaf:10>2x3 0:top:2>-1x3");
  EXPECT_EQ(plan.leaves(), 6);
}

TEST(PlanTest, FlatIsOneLeafInAllOnTheNodeThatHoldsTheRound) {
  Rig rig = MakeRig(30, 3, 20, 9.0, HierarchyShape::kFlat);
  rig.nodes[2].residual = 30;
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(Drawn(plan), "2:leaf:30>-1");
  EXPECT_FALSE(plan.overloaded());
  rig.nodes[2].residual = 29;
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan tight, PlanOf(rig));
  EXPECT_EQ(Drawn(tight), "2:leaf:30>-1");
  EXPECT_TRUE(tight.overloaded());
}

TEST(PlanTest, AStaticPlanIgnoresTheLoad) {
  Rig rig = MakeRig(40, 1, 50, 1.0);
  rig.request.hierarchy.plan = {.kind = PlanKind::kStatic, .leaves = 4};
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(plan.leaves(), 4);
  rig.nodes[0].cores = 3;
  EXPECT_EQ(PlanOf(rig)->leaves(), 3);
}

TEST(PlanTest, BeforeTheFirstEstimateEveryUpdateCountsAsInHand) {
  Rig rig = MakeRig(20, 1, 50, std::nullopt);
  EXPECT_EQ(PlanOf(rig)->leaves(), 10);
}

TEST(PlanTest, OverloadIsFlaggedOnTheNodeThatHasIt) {
  Rig rig = MakeRig(45, 2, 20, 2.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_TRUE(plan.overloaded());
  ASSERT_EQ(plan.nodes.size(), 2u);
  EXPECT_EQ(plan.nodes[0].overloads + plan.nodes[1].overloads, 5);
}

TEST(PlanTest, ImpossibleRequestsAreRefused) {
  const auto refused = [](auto change, const std::string& why) {
    Rig rig = MakeRig(5, 2, 20, 1.0);
    change(rig);
    EXPECT_THAT(PlanOf(rig), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused([](Rig& rig) { rig.request.updates = 0; }, "at least one update");
  refused([](Rig& rig) { rig.nodes.clear(); }, "at least one node");
  refused([](Rig& rig) { rig.nodes[1].node = 0; }, "node 0 twice");
  refused([](Rig& rig) { rig.nodes[1].cores = 0; }, "node 1");
  refused([](Rig& rig) { rig.nodes[1].quota = 0; }, "node 1");
  refused([](Rig& rig) { rig.nodes[0].residual = std::nan(""); }, "finite");
  refused([](Rig& rig) { rig.nodes[0].load = std::numeric_limits<double>::infinity(); }, "finite");
}

TEST(PlanTest, AHundredThousandUpdatesOverManyNodesMakeOneTree) {
  Rig rig = MakeRig(100'000, 500, 250, 13.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  EXPECT_EQ(plan.nodes.size(), 400u);
  EXPECT_EQ(plan.partials_between_nodes(), 399);
  EXPECT_EQ(plan.roles.size(), 400u * (7 + 1) + 1);
}

// ---- the static check, each rule broken once ----

RoundPlan GoodPlan() {
  Rig rig = MakeRig(26, 2, 20, 4.0);
  return *PlanOf(rig);  // 0:leaf:10>2 0:leaf:10>2 0:middle:2>6 1:leaf:3>5 1:leaf:3>5 1:middle:2>6 0:top:2>-1
}

TEST(CheckPlanTest, FindsEachKindOfDamage) {
  ASSERT_EQ(Drawn(GoodPlan()), "0:leaf:10>2 0:leaf:10>2 0:middle:2>6 1:leaf:3>5 1:leaf:3>5 1:middle:2>6 0:top:2>-1");
  EXPECT_THAT(CheckPlan(GoodPlan()), IsOk());
  const auto broken = [](auto change, const std::string& why) {
    RoundPlan plan = GoodPlan();
    change(plan);
    EXPECT_THAT(CheckPlan(plan), StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("round 3, epoch 1"), HasSubstr(why))));
  };
  broken([](RoundPlan& p) { p.roles.clear(); }, "expected one root, got 0");
  broken([](RoundPlan& p) { p.roles[0].parent = -1; }, "expected one root, got 2");
  broken([](RoundPlan& p) { p.roles[0].parent = 9; }, "parent 9 is none of 7 roles");
  broken([](RoundPlan& p) { p.roles[0].parent = -2; }, "parent -2");
  broken([](RoundPlan& p) { p.roles[0].parent = 1; }, "is a leaf");
  broken([](RoundPlan& p) { p.roles[0].parent = 5; }, "its middle is on node 1");
  broken([](RoundPlan& p) { p.roles[2].parent = 5; }, "a middle sends to the top");
  broken([](RoundPlan& p) { p.roles[6].parent = 2; }, "a top with a parent");
  broken([](RoundPlan& p) { p.roles[0].role = Role::kParked; }, "parked is no role");
  broken([](RoundPlan& p) { p.roles[2].goal = 3; }, "its goal is 3, it has 2 children");
  broken([](RoundPlan& p) { p.roles[0].goal = 9; }, "the target is 26");
  broken([](RoundPlan& p) { p.roles[0].goal = 0; }, "goal 0");
  broken([](RoundPlan& p) { p.roles[0].taken = 11; }, "taken 11");
  broken([](RoundPlan& p) { p.roles[0].closed = true; }, "closed");
  broken([](RoundPlan& p) { p.roles[0].shards = 0; }, "at least one shard");
  broken([](RoundPlan& p) { p.target = 25; }, "the target is 25");
  broken([](RoundPlan& p) { p.nodes[0].updates = 19; }, "its share is 19 updates, its leaves take 20");
  broken([](RoundPlan& p) { p.nodes[1].node = 7; }, "node 7: its share is 6 updates, its leaves take 0");
  broken([](RoundPlan& p) { p.nodes.pop_back(); }, "shares on 1");
  broken([](RoundPlan& p) { p.route[0] = 2; }, "which is no leaf");
  broken([](RoundPlan& p) { p.route[0] = -1; }, "which is no leaf");
  broken([](RoundPlan& p) { p.route.pop_back(); }, "its goal is");
  broken([](RoundPlan& p) { p.roles[0].goal = 12, p.roles[1].goal = 8, p.route[static_cast<size_t>(std::find(p.route.begin(), p.route.end(), 1) - p.route.begin())] = 0,
                            p.route[static_cast<size_t>(std::find(p.route.begin(), p.route.end(), 1) - p.route.begin())] = 0; },
         "from 8 to 12");
}

TEST(CheckPlanTest, LeavesNoPlaceForACycle) {
  const auto broken = [](size_t role, int32_t parent, const std::string& why) {
    RoundPlan plan = GoodPlan();
    plan.roles[role].parent = parent;
    EXPECT_THAT(CheckPlan(plan), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  broken(0, 0, "is a leaf");
  broken(2, 2, "a middle sends to the top");
  broken(2, 5, "a middle sends to the top");
  broken(6, 6, "a top with a parent");
}

// ---- re-planning inside a round ----

TEST(ReplanTest, OpensALeafForWhatHasNotComeYet) {
  Rig rig = MakeRig(20, 1, 30, 2.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan first, PlanOf(rig));
  EXPECT_EQ(Drawn(first), "0:leaf:20>-1");
  rig.nodes[0].load = 6.0;
  rig.request.key.epoch = 2;
  const RoleProgress progress{.inputs = 5};
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan second, Replan(first, {&progress, 1}, rig.request));
  EXPECT_EQ(Drawn(second), "0:leaf:7>3 0:leaf:7>3 0:leaf:6>3 0:top:3>-1");
  EXPECT_EQ(second.roles[0].continues, 0);
  EXPECT_EQ(second.roles[0].taken, 5);
  EXPECT_EQ(second.roles[1].continues, -1);
}

TEST(ReplanTest, ClosesALeafEarlyAndKeepsWhatFinished) {
  Rig rig = MakeRig(20, 1, 30, 6.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan first, PlanOf(rig));
  ASSERT_EQ(Drawn(first), "0:leaf:7>3 0:leaf:7>3 0:leaf:6>3 0:top:3>-1");
  rig.nodes[0].load = 1.0;
  rig.request.key.epoch = 2;
  const std::vector<RoleProgress> progress = {{.inputs = 7, .finished = true}, {.inputs = 4}, {.inputs = 2}, {.inputs = 1}};
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan second, Replan(first, progress, rig.request));
  // The third, with least, takes the seven that are still to come; the second closes with its four.
  EXPECT_EQ(Drawn(second), "0:leaf:7>3 0:leaf:4>3 0:leaf:9>3 0:top:3>-1");
  EXPECT_TRUE(second.roles[0].closed && second.roles[1].closed && !second.roles[2].closed);
  EXPECT_EQ(second.roles[3].continues, 3);
}

TEST(ReplanTest, ATopThatHoldsAPartialStaysOverOneLeaf) {
  Rig rig = MakeRig(2, 1, 30, 4.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan first, PlanOf(rig));
  ASSERT_EQ(Drawn(first), "0:leaf:1>2 0:leaf:1>2 0:top:2>-1");
  rig.nodes[0].load = 1.0;
  rig.request.key.epoch = 2;
  const std::vector<RoleProgress> progress = {{.inputs = 1, .finished = true}, {}, {.inputs = 1}};
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan second, Replan(first, progress, rig.request));
  EXPECT_EQ(Drawn(second), "0:leaf:1>2 0:leaf:1>2 0:top:2>-1");
}

TEST(ReplanTest, AnIdleLeafGoesAndTheRoundNeedsNoTop) {
  Rig rig = MakeRig(6, 1, 30, 4.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan first, PlanOf(rig));
  rig.nodes[0].load = 1.0;
  rig.request.key.epoch = 2;
  const std::vector<RoleProgress> progress(3);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan second, Replan(first, progress, rig.request));
  EXPECT_EQ(Drawn(second), "0:leaf:6>-1");
  EXPECT_EQ(second.roles[0].continues, 0);
}

TEST(ReplanTest, ShardsThatHoldSomethingAreNotCutAnew) {
  Rig rig = MakeRig(20, 1, 30, 4.0, HierarchyShape::kShard);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan first, PlanOf(rig));
  rig.nodes[0].load = 8.0;
  rig.request.key.epoch = 2;
  RoleProgress progress{.inputs = 1};
  EXPECT_EQ(Replan(first, {&progress, 1}, rig.request)->leaves(), 2);
  progress.inputs = 0;
  EXPECT_EQ(Replan(first, {&progress, 1}, rig.request)->leaves(), 4);
}

TEST(ReplanTest, RefusesWhatDoesNotFit) {
  Rig rig = MakeRig(26, 2, 20, 4.0);
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan plan, PlanOf(rig));
  std::vector<RoleProgress> progress(plan.roles.size());
  EXPECT_THAT(Replan(plan, progress, rig.request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an epoch above 1")));
  rig.request.key = {.round = 4, .epoch = 2};
  EXPECT_THAT(Replan(plan, progress, rig.request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected that round")));
  rig.request.key = {.round = 3, .epoch = 2};
  EXPECT_THAT(Replan(plan, {}, rig.request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("progress of 7 roles")));
  progress[0] = {.inputs = 11};
  EXPECT_THAT(Replan(plan, progress, rig.request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("role 0 (leaf on node 0)")));
  progress[0] = {.inputs = 3, .finished = true};
  EXPECT_THAT(Replan(plan, progress, rig.request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("all of them where finished")));
  progress[0] = {};
  rig.nodes.pop_back();
  rig.request.nodes = rig.nodes;
  EXPECT_THAT(Replan(plan, progress, rig.request), StatusIs(absl::StatusCode::kNotFound, HasSubstr("node 1")));
}

// Random rounds: updates arrive by the router, loads change, plans follow one another; every plan passes its check (Replan runs it), no
// update is lost, and a leaf never gets more than its goal.
TEST(ReplanTest, ManyPlansInOneRoundCountEveryUpdateOnce) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    const HierarchyShape shape = random() % 3 == 0 ? HierarchyShape::kShard : HierarchyShape::kTree;
    Rig rig = MakeRig(1 + static_cast<int64_t>(random() % 100), 1 + random() % 4, static_cast<double>(random() % 40), static_cast<double>(random() % 20), shape);
    TRIB_ASSERT_OK_AND_ASSIGN(RoundPlan plan, PlanOf(rig));
    std::vector<RoleProgress> progress(plan.roles.size());
    int64_t handed = 0;
    while (handed < rig.request.updates) {
      bench::UpdateRouter router(plan);
      const int64_t burst = 1 + static_cast<int64_t>(random() % 12);
      for (int64_t i = 0; i < burst; ++i) {
        const std::optional<int32_t> leaf = router.Next();
        if (!leaf) break;
        if (random() % 7 == 0) {  // refused after all: its place is somebody else's
          router.GiveBack(*leaf);
          continue;
        }
        ++progress[static_cast<size_t>(*leaf)].inputs;
        ++handed;
        ASSERT_LE(progress[static_cast<size_t>(*leaf)].inputs, plan.roles[static_cast<size_t>(*leaf)].goal);
      }
      for (size_t i = 0; i < plan.roles.size(); ++i) {
        const auto& role = plan.roles[i];
        RoleProgress& done = progress[i];
        if (role.role != Role::kLeaf || done.finished || done.inputs < role.goal || random() % 2 == 0) continue;
        done.finished = true;
        if (role.parent >= 0) ++progress[static_cast<size_t>(role.parent)].inputs;
      }
      for (NodeState& node : rig.nodes) node.load = static_cast<double>(random() % 20);
      ++rig.request.key.epoch;
      rig.request.nodes = rig.nodes;
      TRIB_ASSERT_OK_AND_ASSIGN(RoundPlan next, Replan(plan, progress, rig.request));
      std::vector<RoleProgress> carried(next.roles.size());
      int64_t kept = 0;
      for (size_t i = 0; i < next.roles.size(); ++i) {
        if (next.roles[i].continues < 0) continue;
        carried[i] = progress[static_cast<size_t>(next.roles[i].continues)];
        if (next.roles[i].role == Role::kLeaf) kept += carried[i].inputs;
      }
      ASSERT_EQ(kept, handed);
      plan = std::move(next);
      progress = std::move(carried);
    }
    EXPECT_EQ(bench::UpdateRouter(plan).Next(), std::nullopt);
  }
}

}  // namespace
}  // namespace tributary::aggregator
