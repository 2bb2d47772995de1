// Rounds that close by the clock.
#include "tests/unit/simulate/fixtures.h"

namespace tributary::simulate {
namespace {

TEST(TicksTest, ARoundThatClosesByTheClockTakesAsManyEventsAsThoseBeforeIt) {
  const auto events_of = [](int64_t versions) -> absl::StatusOr<uint64_t> {
    JobSpec spec = Job("fedfix", false);
    spec.strategy.params["interval_s"] = "0.5";
    spec.cohort.size = static_cast<int64_t>(kClients);
    spec.stop.versions = versions;
    spec.simulate.delay.kind = "fixed";
    for (size_t i = 0; i < kClients; ++i) spec.simulate.delay.seconds.push_back(0.3 + 0.1 * static_cast<double>(i));
    DrawingLearner learner(false);
    TRIB_ASSIGN_OR_RETURN(const SimulationResult result, RunWith(spec, &learner));
    EXPECT_EQ(result.state, SimulationState::kDone) << result.reason;
    EXPECT_EQ(result.version, static_cast<uint64_t>(versions));
    return result.engine_events;
  };
  TRIB_ASSERT_OK_AND_ASSIGN(const uint64_t few, events_of(50));
  TRIB_ASSERT_OK_AND_ASSIGN(const uint64_t many, events_of(200));
  EXPECT_LE(many, 5 * few);
}

}  // namespace
}  // namespace tributary::simulate
