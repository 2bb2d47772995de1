#include "tests/bench/planner_roles.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>

#include "tests/support/status_matchers.h"

namespace tributary::bench {
namespace {

using namespace aggregator;

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;
using Kind = RoleOrder::Kind;

constexpr PlanKey kFirst{.round = 1, .epoch = 1};
constexpr PlanKey kReplanned{.round = 1, .epoch = 2};
constexpr PlanKey kNextRound{.round = 2, .epoch = 3};

RoleState InRole(PlanKey key, Role role) {
  RoleState state;
  EXPECT_TRUE(*state.Apply(key, role));
  return state;
}

TEST(RoleStateTest, ClimbsFromLeafToTopAndParks) {
  RoleState state;
  EXPECT_EQ(state.role(), Role::kParked);
  for (const Role role : {Role::kLeaf, Role::kMiddle, Role::kTop, Role::kParked}) {
    const auto changed = state.Apply(kFirst, role);
    ASSERT_THAT(changed, IsOk());
    EXPECT_TRUE(*changed);
    EXPECT_EQ(state.role(), role);
  }
}

TEST(RoleStateTest, TheFirstOrderMayHaveAnyKey) {
  RoleState state;
  EXPECT_TRUE(*state.Apply({}, Role::kLeaf));
  EXPECT_EQ(state.role(), Role::kLeaf);
}

TEST(RoleStateTest, StepsMayBeSkippedUpwards) {
  EXPECT_EQ(InRole(kFirst, Role::kTop).role(), Role::kTop);
  RoleState state = InRole(kFirst, Role::kLeaf);
  EXPECT_TRUE(*state.Apply(kFirst, Role::kTop));
  EXPECT_TRUE(*InRole(kFirst, Role::kLeaf).Apply(kFirst, Role::kParked));
}

TEST(RoleStateTest, RepeatsAndOvertakenOrdersChangeNothing) {
  RoleState state = InRole(kFirst, Role::kMiddle);
  for (const Role role : {Role::kLeaf, Role::kMiddle}) {
    const auto changed = state.Apply(kFirst, role);
    ASSERT_THAT(changed, IsOk());
    EXPECT_FALSE(*changed);
    EXPECT_EQ(state.role(), Role::kMiddle);
  }
}

TEST(RoleStateTest, AParkedWorkerIsNotRevivedByALateOrderOfItsPlan) {
  RoleState state = InRole(kFirst, Role::kLeaf);
  ASSERT_TRUE(*state.Apply(kFirst, Role::kParked));
  EXPECT_FALSE(*state.Apply(kFirst, Role::kLeaf));
  EXPECT_FALSE(*state.Apply(kFirst, Role::kMiddle));
  EXPECT_EQ(state.role(), Role::kParked);
}

TEST(RoleStateTest, OrdersOfOlderPlansAreRefused) {
  RoleState state = InRole(kReplanned, Role::kLeaf);
  EXPECT_THAT(state.Apply(kFirst, Role::kTop), StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr("round 1, epoch 1"), HasSubstr("epoch 2"))));
  // Round before epoch: an old round is old whatever its epoch says.
  RoleState later = InRole({.round = 2, .epoch = 1}, Role::kLeaf);
  EXPECT_THAT(later.Apply({.round = 1, .epoch = 9}, Role::kParked), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(later.role(), Role::kLeaf);
}

TEST(RoleStateTest, ANewPlanOfTheRoundKeepsOrRaisesButNeverLowers) {
  RoleState leaf = InRole(kFirst, Role::kLeaf);
  EXPECT_TRUE(*leaf.Apply(kReplanned, Role::kLeaf));
  EXPECT_EQ(leaf.key(), kReplanned);
  for (const Role role : {Role::kMiddle, Role::kTop}) {
    RoleState state = InRole(kFirst, role);
    EXPECT_THAT(state.Apply(kReplanned, Role::kLeaf), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("holds partials")));
    EXPECT_EQ(state.role(), role);
    EXPECT_EQ(state.key(), kFirst);
    EXPECT_TRUE(*state.Apply(kReplanned, Role::kParked));
  }
  RoleState parked = InRole(kFirst, Role::kParked);
  EXPECT_TRUE(*parked.Apply(kReplanned, Role::kLeaf));
}

TEST(RoleStateTest, ANewRoundBeginsAnywhere) {
  for (const Role before : {Role::kParked, Role::kLeaf, Role::kMiddle, Role::kTop}) {
    for (const Role after : {Role::kParked, Role::kLeaf, Role::kMiddle, Role::kTop}) {
      RoleState state = InRole(kFirst, before);
      EXPECT_TRUE(*state.Apply(kNextRound, after));
      EXPECT_EQ(state.role(), after);
    }
  }
}

// ---- diffs ----

// Workers of a cluster, to which orders are applied as the daemon would; a repeated order must change nothing.
class Crew {
 public:
  std::vector<WorkerView> views() const {
    std::vector<WorkerView> all;
    for (const auto& entry : workers_) all.push_back(entry.second.view);
    return all;
  }
  void Kill(uint32_t worker) { workers_.erase(worker); }
  void Apply(const RoundPlan& plan, const std::vector<RoleOrder>& orders, absl::Time now = absl::UnixEpoch()) {
    for (const RoleOrder& order : orders) {
      uint32_t id = order.worker;
      if (order.kind == Kind::kStop) {
        Kill(id);
        ++stops;
        continue;
      }
      if (order.kind == Kind::kStart) {
        id = next_++;
        workers_[id].view = {.worker = id, .node = order.node};
        ++starts;
      }
      ASSERT_TRUE(workers_.contains(id)) << id;
      Worker& worker = workers_[id];
      ASSERT_EQ(worker.view.node, order.node);
      const auto changed = worker.state.Apply(plan.key, order.role);
      ASSERT_THAT(changed, IsOk());
      EXPECT_TRUE(*changed || order.kind == Kind::kKeep) << "an order that its worker takes for a repeat";
      const auto repeated = worker.state.Apply(plan.key, order.role);
      ASSERT_THAT(repeated, IsOk());
      EXPECT_FALSE(*repeated);
      if (order.kind == Kind::kPark && worker.view.role != Role::kParked) worker.view.parked_since = now;
      worker.view = {.worker = id, .node = order.node, .role = worker.state.role(), .key = plan.key, .planned = order.planned,
                     .parked_since = worker.view.parked_since};
    }
  }
  int starts = 0;
  int stops = 0;

 private:
  struct Worker {
    WorkerView view;
    RoleState state{};
  };
  std::map<uint32_t, Worker> workers_;
  uint32_t next_ = 1;
};

RoundPlan MakePlan(PlanKey key, int64_t updates, size_t nodes, double load, HierarchyShape shape = HierarchyShape::kTree) {
  std::vector<NodeState> states;
  for (size_t i = 0; i < nodes; ++i) states.push_back({.node = static_cast<uint32_t>(i), .residual = 20, .load = load, .cores = 16, .quota = 16});
  PlanRequest request{.key = key, .updates = updates};
  request.hierarchy.shape = shape;
  request.hierarchy.placement = FindPlanner("bestfit");
  request.nodes = states;
  auto plan = PlanRound(request);
  EXPECT_THAT(plan, IsOk());
  return *plan;
}

std::vector<RoleProgress> Nothing(const RoundPlan& plan) { return std::vector<RoleProgress>(plan.roles.size()); }

std::vector<int> CountsOf(const std::vector<RoleOrder>& orders) {  // keep, assign, promote, start, park, stop
  std::vector<int> counts(6);
  for (const RoleOrder& order : orders) ++counts[static_cast<size_t>(order.kind)];
  return counts;
}

TEST(DiffPlanTest, AFreshNodeStartsItsLeavesOnly) {
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  const auto orders = DiffPlan(plan, Nothing(plan), {}, /*reuse=*/true);
  EXPECT_THAT(CountsOf(orders), ElementsAre(0, 0, 0, 3, 0, 0));
  EXPECT_THAT(orders, Each(Field(&RoleOrder::role, Role::kLeaf)));
}

TEST(DiffPlanTest, WithoutReuseEveryRoleGetsAProcess) {
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  EXPECT_THAT(CountsOf(DiffPlan(plan, Nothing(plan), {}, /*reuse=*/false)), ElementsAre(0, 0, 0, 4, 0, 0));
}

TEST(DiffPlanTest, IsIdempotent) {
  for (const bool reuse : {true, false}) {
    Crew crew;
    const RoundPlan plan = MakePlan(kFirst, 50, 3, 6);
    crew.Apply(plan, DiffPlan(plan, Nothing(plan), crew.views(), reuse));
    const size_t size = crew.views().size();
    const auto again = DiffPlan(plan, Nothing(plan), crew.views(), reuse);
    EXPECT_THAT(CountsOf(again), ElementsAre(static_cast<int>(size), 0, 0, 0, 0, 0));
    crew.Apply(plan, again);
    EXPECT_EQ(crew.views().size(), size);
  }
}

TEST(DiffPlanTest, TakesTheWarmestParkedWorkerOfTheNode) {
  const RoundPlan plan = MakePlan(kFirst, 2, 1, 1);
  const absl::Time t = absl::UnixEpoch();
  const std::vector<WorkerView> workers = {{.worker = 1, .node = 0, .parked_since = t + absl::Seconds(1)},
                                           {.worker = 2, .node = 0, .parked_since = t + absl::Seconds(9)},
                                           {.worker = 3, .node = 1, .parked_since = t + absl::Seconds(20)}};
  EXPECT_THAT(DiffPlan(plan, Nothing(plan), workers, true), ElementsAre(RoleOrder{Kind::kAssign, 2, 0, Role::kLeaf, 0}));
}

TEST(DiffPlanTest, TheNextRoundReusesWhoeverWasInTheLast) {
  Crew crew;
  const RoundPlan first = MakePlan(kFirst, 8, 1, 6);
  crew.Apply(first, DiffPlan(first, Nothing(first), crew.views(), true));
  const RoundPlan next = MakePlan(kNextRound, 8, 1, 4);
  const auto orders = DiffPlan(next, Nothing(next), crew.views(), true);
  EXPECT_THAT(CountsOf(orders), ElementsAre(0, 2, 0, 0, 1, 0));
  crew.Apply(next, orders);
  EXPECT_EQ(crew.starts, 3);
}

TEST(DiffPlanTest, WithoutReuseTheNextRoundStartsAnew) {
  Crew crew;
  const RoundPlan first = MakePlan(kFirst, 8, 1, 6);
  crew.Apply(first, DiffPlan(first, Nothing(first), crew.views(), false));
  const RoundPlan next = MakePlan(kNextRound, 8, 1, 6);
  EXPECT_THAT(CountsOf(DiffPlan(next, Nothing(next), crew.views(), false)), ElementsAre(0, 0, 0, 4, 0, 4));
}

TEST(DiffPlanTest, ADeadLeafIsStaffedAgainAndNobodyElseMoves) {
  Crew crew;
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  crew.Apply(plan, DiffPlan(plan, Nothing(plan), crew.views(), true));
  crew.Kill(2);
  EXPECT_THAT(CountsOf(DiffPlan(plan, Nothing(plan), crew.views(), true)), ElementsAre(2, 0, 0, 1, 0, 0));
}

TEST(DiffPlanTest, AWorkerThatThisPlanParkedIsTakenAgainOnlyByALaterOne) {
  Crew crew;
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  crew.Apply(plan, DiffPlan(plan, Nothing(plan), crew.views(), true));
  std::vector<RoleProgress> progress = Nothing(plan);
  progress[0] = {.inputs = plan.roles[0].goal, .begun = 1, .finished = true};
  crew.Apply(plan, {{Kind::kPromote, 1, 0, Role::kTop, 3}});
  progress[1] = {.inputs = plan.roles[1].goal, .begun = 1, .finished = true};
  progress[3] = {.inputs = 2, .begun = 1};
  crew.Apply(plan, DiffPlan(plan, progress, crew.views(), true));  // parks the second leaf, whose partial is sent
  crew.Kill(3);
  EXPECT_THAT(CountsOf(DiffPlan(plan, progress, crew.views(), true)), ElementsAre(1, 0, 0, 1, 0, 0));
  NodeState node{.node = 0, .residual = 20, .load = 6, .cores = 16, .quota = 16};
  PlanRequest request{.key = kReplanned, .updates = 8};
  request.hierarchy.shape = HierarchyShape::kTree;
  request.hierarchy.placement = FindPlanner("bestfit");
  request.nodes = {&node, 1};
  TRIB_ASSERT_OK_AND_ASSIGN(const RoundPlan next, Replan(plan, progress, request));
  std::vector<RoleProgress> carried;
  for (const auto& role : next.roles) carried.push_back(role.continues < 0 ? RoleProgress{} : progress[static_cast<size_t>(role.continues)]);
  const auto orders = DiffPlan(next, carried, crew.views(), true);
  EXPECT_THAT(CountsOf(orders), ElementsAre(1, 1, 0, 1, 0, 0));  // two leaves for two updates
  crew.Apply(next, orders);
}

TEST(DiffPlanTest, AFinishedLeafThatMissedItsPromotionIsPromoted) {
  Crew crew;
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  crew.Apply(plan, DiffPlan(plan, Nothing(plan), crew.views(), true));
  std::vector<RoleProgress> progress = Nothing(plan);
  progress[1] = {.inputs = plan.roles[1].goal, .finished = true};
  const auto orders = DiffPlan(plan, progress, crew.views(), true);
  EXPECT_THAT(CountsOf(orders), ElementsAre(2, 0, 1, 0, 0, 0));
  crew.Apply(plan, orders);
  progress[3] = {.inputs = 1, .begun = 1};
  EXPECT_THAT(CountsOf(DiffPlan(plan, progress, crew.views(), true)), ElementsAre(3, 0, 0, 0, 0, 0));
}

TEST(DiffPlanTest, ADeadMiddleIsReplacedThoughItsLeavesAreDone) {
  Crew crew;
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  crew.Apply(plan, DiffPlan(plan, Nothing(plan), crew.views(), true));
  std::vector<RoleProgress> progress = Nothing(plan);
  for (size_t i = 0; i < 3; ++i) progress[i] = {.inputs = plan.roles[i].goal, .finished = true};
  progress[3] = {.inputs = 2, .begun = 1};  // it had two of three partials
  crew.Kill(1);
  const auto orders = DiffPlan(plan, progress, crew.views(), true);
  EXPECT_THAT(CountsOf(orders), ElementsAre(0, 0, 0, 1, 2, 0));
  EXPECT_EQ(orders[0].role, Role::kTop);
}

TEST(DiffPlanTest, NothingIsStaffedForRolesThatAreDone) {
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  std::vector<RoleProgress> progress = Nothing(plan);
  for (size_t i = 0; i < plan.roles.size(); ++i) progress[i] = {.inputs = plan.roles[i].goal, .finished = true};
  EXPECT_THAT(DiffPlan(plan, progress, {}, true), IsEmpty());
}

TEST(DiffPlanTest, ShardsAreStaffedOneWorkerEach) {
  Crew crew;
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6, HierarchyShape::kShard);
  const auto orders = DiffPlan(plan, Nothing(plan), crew.views(), true);
  EXPECT_THAT(CountsOf(orders), ElementsAre(0, 0, 0, 3, 0, 0));
  crew.Apply(plan, orders);
  EXPECT_THAT(CountsOf(DiffPlan(plan, Nothing(plan), crew.views(), true)), ElementsAre(3, 0, 0, 0, 0, 0));
}

TEST(DiffPlanTest, ATopThatAPartialWaitsForIsStillRisenTo) {
  Crew crew;
  const RoundPlan plan = MakePlan(kFirst, 26, 2, 4);  // 0: leaf leaf middle, 1: leaf leaf middle, 0: top
  crew.Apply(plan, DiffPlan(plan, Nothing(plan), crew.views(), true));
  std::vector<RoleProgress> progress = Nothing(plan);
  progress[6].inputs = 1;  // from node 1
  EXPECT_THAT(CountsOf(DiffPlan(plan, progress, crew.views(), true)), ElementsAre(4, 0, 0, 0, 0, 0));
}

TEST(AfterFinishTest, TheFirstLeafRisesAndTheOthersSend) {
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);  // three leaves, one top
  std::vector<RoleProgress> progress = Nothing(plan);
  EXPECT_EQ(AfterFinish(plan, progress, 1, true), (NextStep{NextStep::Kind::kPromote, 3}));
  progress[3].begun = 1;
  EXPECT_EQ(AfterFinish(plan, progress, 0, true), (NextStep{NextStep::Kind::kSend, 3}));
  EXPECT_EQ(AfterFinish(plan, progress, 3, true), (NextStep{NextStep::Kind::kReport, -1}));
}

TEST(AfterFinishTest, WithoutReuseNobodyRises) {
  const RoundPlan plan = MakePlan(kFirst, 8, 1, 6);
  EXPECT_EQ(AfterFinish(plan, Nothing(plan), 1, false).kind, NextStep::Kind::kSend);
}

TEST(AfterFinishTest, OnlyAWorkerOfTheTopsNodeRisesToIt) {
  const RoundPlan plan = MakePlan(kFirst, 26, 2, 4);
  EXPECT_EQ(AfterFinish(plan, Nothing(plan), 2, true), (NextStep{NextStep::Kind::kPromote, 6}));
  EXPECT_EQ(AfterFinish(plan, Nothing(plan), 5, true), (NextStep{NextStep::Kind::kSend, 6}));
}

TEST(AfterFinishTest, EachShardRisesWithItsRange) {
  const RoundPlan plan = MakePlan(kFirst, 30, 2, 6, HierarchyShape::kShard);  // 0: leaf x3, 1: leaf x3, 0: top x3
  std::vector<RoleProgress> progress = Nothing(plan);
  for (int64_t risen = 0; risen < 3; ++risen) {
    progress[2].begun = risen;
    EXPECT_EQ(AfterFinish(plan, progress, 0, true), (NextStep{NextStep::Kind::kPromote, 2}));
    EXPECT_EQ(AfterFinish(plan, progress, 1, true), (NextStep{NextStep::Kind::kSend, 2}));
  }
  progress[2].begun = 3;
  EXPECT_EQ(AfterFinish(plan, progress, 0, true).kind, NextStep::Kind::kSend);
}

// Whole rounds played out with random finishing orders, deaths and plans: each ends with one report, and with reuse a round needs no
// more processes than leaves (T11's second half).
TEST(RolesTest, EveryRoundEndsInOneReport) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    const bool reuse = random() % 4 != 0;
    const bool deaths = random() % 2 == 0;
    Crew crew;
    for (uint64_t round = 1; round <= 4; ++round) {
      const RoundPlan plan = MakePlan({.round = round, .epoch = round}, 1 + static_cast<int64_t>(random() % 70), 1 + random() % 4, static_cast<double>(random() % 12));
      std::vector<RoleProgress> progress = Nothing(plan);
      const size_t before = crew.views().size();
      int killed = 0;
      const int starts = crew.starts;
      int reports = 0;
      while (reports == 0) {
        const std::vector<RoleOrder> orders = DiffPlan(plan, progress, crew.views(), reuse);
        crew.Apply(plan, orders);
        for (const RoleOrder& order : orders) {
          const bool takes = order.kind == Kind::kAssign || order.kind == Kind::kPromote || order.kind == Kind::kStart;
          if (takes) ++progress[static_cast<size_t>(order.planned)].begun;
        }
        const std::vector<WorkerView> views = crew.views();
        // Some staffed role whose inputs are all there finishes.
        std::vector<const WorkerView*> ready;
        for (const WorkerView& view : views) {
          if (view.planned < 0) continue;
          RoleProgress& done = progress[static_cast<size_t>(view.planned)];
          const auto& role = plan.roles[static_cast<size_t>(view.planned)];
          if (role.role == Role::kLeaf) done.inputs = role.goal;
          if (!done.finished && done.inputs == role.goal) ready.push_back(&view);
        }
        ASSERT_FALSE(ready.empty()) << "the round is stuck";
        const WorkerView& worker = *ready[random() % ready.size()];
        if (deaths && random() % 5 == 0) {
          crew.Kill(worker.worker);
          ++killed;
          continue;
        }
        progress[static_cast<size_t>(worker.planned)].finished = true;
        const NextStep step = AfterFinish(plan, progress, worker.planned, reuse);
        if (step.kind == NextStep::Kind::kReport) {
          ++reports;
          continue;
        }
        // Sometimes the promotion is missed, and the next diff makes up for it.
        if (step.kind == NextStep::Kind::kPromote && random() % 2 == 0) {
          ++progress[static_cast<size_t>(step.parent)].begun;
          crew.Apply(plan, {{Kind::kPromote, worker.worker, worker.node, plan.roles[static_cast<size_t>(step.parent)].role, step.parent}});
        }
        ++progress[static_cast<size_t>(step.parent)].inputs;
      }
      for (const RoleProgress& done : progress) EXPECT_TRUE(done.finished);
      if (reuse) {
        EXPECT_LE(crew.starts - starts, plan.leaves() + killed);
        EXPECT_GE(crew.views().size() + static_cast<size_t>(killed), before);
      }
    }
  }
}

TEST(UpdateRouterTest, GoesAlongTheRouteAndTakesPlacesBack) {
  const RoundPlan plan = MakePlan(kFirst, 3, 1, 4);
  UpdateRouter router(plan);
  EXPECT_EQ(router.Next(), 0);
  EXPECT_EQ(router.Next(), 1);
  router.GiveBack(0);
  EXPECT_EQ(router.Next(), 0);
  EXPECT_EQ(router.Next(), 0);
  EXPECT_EQ(router.Next(), std::nullopt);
  router.GiveBack(1);
  EXPECT_EQ(router.Next(), 1);
  EXPECT_EQ(router.Next(), std::nullopt);
}

}  // namespace
}  // namespace tributary::bench
