// Whole rounds in virtual time: the planners together, under every combination of the four switches.
#include "tests/bench/planner_sim.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>

namespace tributary::bench {
namespace {

using namespace aggregator;

std::vector<ArrivalTrace> Traces(size_t rounds, size_t updates, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<ArrivalTrace> traces(rounds);
  for (ArrivalTrace& trace : traces) {
    for (size_t i = 0; i < 1 + random() % updates; ++i) trace.push_back(static_cast<double>(random() % 5000) / 1000);
    std::sort(trace.begin(), trace.end());
  }
  return traces;
}

SimOptions Options(HierarchyShape shape, TimingKind timing, const PlannerEntry& placement, PlanKind plan, bool reuse) {
  SimOptions options{.nodes = 3, .cores = 6, .capacity = 12};
  options.hierarchy = {.shape = shape, .leaf_fan_in = 2, .timing = {.kind = timing}, .placement = &placement,
                       .plan = {.kind = plan, .leaves = plan == PlanKind::kStatic ? 4 : 0, .period = absl::Seconds(7)}, .reuse = reuse};
  options.costs.network_s = 0.03;
  options.costs.partial_bytes = 10;
  return options;
}

TEST(PlannerSimTest, EveryCombinationOfTheSwitchesFinishesEveryRound) {
  const std::vector<ArrivalTrace> traces = Traces(8, 40, 1);
  for (const HierarchyShape shape : {HierarchyShape::kTree, HierarchyShape::kShard, HierarchyShape::kFlat}) {
    for (const TimingKind timing : {TimingKind::kEager, TimingKind::kLazy, TimingKind::kBatch, TimingKind::kJit}) {
      for (const PlannerEntry& placement : Planners()) {
        for (const PlanKind plan : {PlanKind::kEwma, PlanKind::kStatic}) {
          for (const bool reuse : {true, false}) {
            SCOPED_TRACE(fmt::format("shape {}, {}, {}, plan {}, reuse {}", HierarchyShapeName(shape), TimingKindName(timing), placement.name,
                                     static_cast<int>(plan), reuse));
            const SimResult result = Simulate(Options(shape, timing, placement, plan, reuse), traces);
            ASSERT_EQ(result.round_s.size(), traces.size());
            int64_t most_leaves = 0, all_leaves = 0, partials = 0;
            for (size_t i = 0; i < traces.size(); ++i) {
              EXPECT_GE(result.round_s[i], traces[i].back());
              EXPECT_GT(result.tail_s[i], 0);
              most_leaves = std::max(most_leaves, result.leaves[i]);
              all_leaves += result.leaves[i];
              partials += result.nodes_used[i] - 1;
            }
            EXPECT_EQ(result.partials_between_nodes, partials);
            EXPECT_EQ(result.bytes_between_nodes, 10.0 * static_cast<double>(partials));
            EXPECT_LE(result.busy_worker_s, result.active_worker_s + 1e-6);
            EXPECT_LE(result.active_worker_s, result.alive_worker_s + 1e-6);
            if (reuse) {
              EXPECT_LE(result.starts, all_leaves);  // T11's second half: no more processes than leaves
            } else {
              EXPECT_GE(result.starts, all_leaves);
            }
          }
        }
      }
    }
  }
}

TEST(PlannerSimTest, TheSameInputGivesTheSameResult) {
  const std::vector<ArrivalTrace> traces = Traces(10, 60, 2);
  const SimOptions options = Options(HierarchyShape::kTree, TimingKind::kJit, Planners()[0], PlanKind::kEwma, true);
  const SimResult a = Simulate(options, traces), b = Simulate(options, traces);
  EXPECT_EQ(a.round_s, b.round_s);
  EXPECT_EQ(a.leaves, b.leaves);
  EXPECT_EQ(a.alive_worker_s, b.alive_worker_s);
}

// By hand: one leaf that is ready, 4 updates 1 s apart, 0.1 s each.
TEST(PlannerSimTest, AgreesWithHandArithmetic) {
  SimOptions options{.nodes = 1, .cores = 1};
  options.hierarchy = {.shape = HierarchyShape::kTree, .timing = {.kind = TimingKind::kEager}, .placement = &Planners()[0],
                       .plan = {.kind = PlanKind::kStatic, .leaves = 1}};
  options.costs = {.fold_s = 0.1, .batch_part = 0.5, .cold_start_s = 0.25, .warm_start_s = 0};
  const std::vector<ArrivalTrace> traces(2, ArrivalTrace{1, 2, 3, 4});
  const SimResult eager = Simulate(options, traces);
  EXPECT_THAT(eager.tail_s, ::testing::Each(::testing::DoubleNear(0.1, 1e-9)));
  EXPECT_NEAR(eager.busy_worker_s, 0.8, 1e-9);
  EXPECT_NEAR(eager.alive_worker_s, 8.2, 1e-9);
  EXPECT_EQ(eager.starts, 1);
  options.hierarchy.timing.kind = TimingKind::kLazy;
  const SimResult lazy = Simulate(options, traces);
  EXPECT_THAT(lazy.tail_s, ::testing::Each(::testing::DoubleNear(0.1 * (1 + 3 * 0.5), 1e-9)));
  EXPECT_EQ(lazy.passes, 2);
}

// What DECISIONS says about E: measured as execution time, the plan never asks for more leaves than are busy.
TEST(PlannerSimTest, ExecutionTimeAsLoadNeverGrowsTheTree) {
  std::vector<ArrivalTrace> traces(60);
  for (ArrivalTrace& trace : traces) {
    for (int i = 0; i < 100; ++i) trace.push_back(0.01 * i);  // five workers' worth
  }
  SimOptions options = Options(HierarchyShape::kTree, TimingKind::kEager, Planners()[0], PlanKind::kEwma, true);
  options.nodes = 1;
  options.cores = 16;
  options.capacity = 1e9;
  options.known_at_start = false;
  options.measured = MeasuredLoad::kExecuting;
  const SimResult stuck = Simulate(options, traces);
  EXPECT_EQ(stuck.leaves.back(), 1);
  options.measured = MeasuredLoad::kInHand;
  const SimResult grown = Simulate(options, traces);
  EXPECT_GE(grown.leaves.back(), 4);
  EXPECT_LT(grown.elapsed_s, 0.5 * stuck.elapsed_s);
}

}  // namespace
}  // namespace tributary::bench
