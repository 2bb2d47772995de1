#include "aggregator/core/planners/scaling.h"

#include <gmock/gmock.h>

#include <algorithm>

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(WorkerQuotaTest, IsWhatTheMemoryHoldsAndAtLeastOne) {
  EXPECT_EQ(WorkerQuota(1000, 300), 3);
  EXPECT_EQ(WorkerQuota(100, 300), 1);
  EXPECT_EQ(WorkerQuota(0, 300), 1);
  EXPECT_EQ(WorkerQuota(UINT64_MAX, 1), int64_t{1} << 31);
}

TEST(WarmPoolTest, KeepsEnoughForTheHighestOfTheLastPlans) {
  WarmPool pool(3);
  EXPECT_EQ(pool.Target(2, 16), 0);
  for (const int64_t workers : {8, 2, 2}) pool.OnPlan(workers);
  EXPECT_EQ(pool.Target(2, 16), 6);
  pool.OnPlan(3);  // the 8 is forgotten
  EXPECT_EQ(pool.Target(2, 16), 1);
  EXPECT_EQ(pool.Target(5, 16), 0);
}

TEST(WarmPoolTest, StaysBelowTheQuota) {
  WarmPool pool;
  pool.OnPlan(30);
  EXPECT_EQ(pool.Target(2, 6), 4);
  EXPECT_EQ(pool.Target(9, 6), 0);
}

TEST(ScaleTest, UnparksBeforeItStarts) {
  EXPECT_EQ(Scale({.wanted = 8, .active = 2, .parked = 4, .warm_target = 0, .quota = 16}), (ScaleDecision{.unpark = 4, .start = 2}));
  EXPECT_EQ(Scale({.wanted = 5, .active = 2, .parked = 4, .warm_target = 9, .quota = 16}), (ScaleDecision{.unpark = 3}));
}

TEST(ScaleTest, ParksWhatIsTooMuchAndEvictsBeyondTheWarmTarget) {
  EXPECT_EQ(Scale({.wanted = 2, .active = 8, .parked = 1, .warm_target = 3, .quota = 16}), (ScaleDecision{.park = 6, .evict = 4}));
  EXPECT_EQ(Scale({.wanted = 2, .active = 8, .parked = 0, .warm_target = 0, .quota = 16}), (ScaleDecision{.park = 6, .evict = 6}));
}

TEST(ScaleTest, KeepsItsPromisesForAllSmallInputs) {
  for (int64_t wanted = 0; wanted <= 6; ++wanted) {
    for (int64_t quota = 1; quota <= 6; ++quota) {
      for (int64_t active = 0; active <= quota; ++active) {
        for (int64_t parked = 0; active + parked <= quota; ++parked) {
          for (int64_t warm = 0; warm <= 6; ++warm) {
            const ScaleDecision d = Scale({.wanted = wanted, .active = active, .parked = parked, .warm_target = warm, .quota = quota});
            ASSERT_GE(std::min({d.unpark, d.start, d.park, d.evict}), 0);
            const int64_t active_after = active + d.unpark + d.start - d.park;
            const int64_t parked_after = parked - d.unpark + d.park - d.evict;
            ASSERT_EQ(active_after, std::min(wanted, quota));
            ASSERT_GE(parked_after, 0);
            ASSERT_LE(parked_after, warm);
            ASSERT_LE(active_after + parked_after, quota);
            ASSERT_TRUE(d.start == 0 || parked == d.unpark);
            ASSERT_TRUE(d.park == 0 || (d.start == 0 && d.unpark == 0));
          }
        }
      }
    }
  }
}

TEST(ColdestTest, ThoseParkedLongestGoFirst) {
  const absl::Time t = absl::UnixEpoch();
  const std::vector<ParkedWorker> parked = {{.worker = 1, .since = t + absl::Seconds(5)},
                                            {.worker = 2, .since = t + absl::Seconds(1)},
                                            {.worker = 5, .since = t + absl::Seconds(1)}};
  EXPECT_THAT(Coldest(parked, 2), ElementsAre(5, 2));
  EXPECT_THAT(Coldest(parked, 9), ElementsAre(5, 2, 1));
  EXPECT_THAT(Coldest(parked, 0), IsEmpty());
}

}  // namespace
}  // namespace tributary::aggregator
