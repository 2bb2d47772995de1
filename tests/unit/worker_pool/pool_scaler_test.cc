#include "aggregator/coordinator/pool_scaler.h"

#include <gmock/gmock.h>

#include "aggregator/coordinator/capacity_book.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const absl::Time kStart = absl::FromUnixSeconds(5000);
constexpr absl::Duration kPeriod = absl::Seconds(30);

class PoolScalerTest : public ::testing::Test {
 protected:
  PoolScaler::Orders Plan(absl::Time now, const std::vector<uint32_t>& needed) {
    for (PoolScaler::Worker& worker : workers_) worker.needed = false;
    for (const uint32_t worker : needed) workers_[worker].needed = true;
    PoolScaler::Orders orders = scaler_.OnPlan(now, workers_);
    for (const uint32_t worker : orders.start) workers_[worker].running = true;
    for (const uint32_t worker : orders.end) workers_[worker].running = false;
    return orders;
  }
  std::vector<PoolScaler::Worker> workers_{4, {.running = true}};
  PoolScaler scaler_{4, kPeriod, kStart};
};

TEST_F(PoolScalerTest, WhatFivePeriodsDidNotUseEndsColdestFirst) {
  EXPECT_EQ(Plan(kStart, {0, 1, 2}), PoolScaler::Orders{});
  for (int period = 1; period <= 4; ++period) EXPECT_EQ(Plan(kStart + period * kPeriod, {1}), PoolScaler::Orders{}) << period;
  // The start, when all counted, is five periods ago; three were needed at one time four periods ago.
  EXPECT_THAT(Plan(kStart + 5 * kPeriod, {1}).end, ElementsAre(3)) << "parked from the beginning, the others since the second plan";
  EXPECT_EQ(scaler_.parked_since(0), kStart + kPeriod);
  EXPECT_EQ(scaler_.parked_since(1), absl::InfiniteFuture());
  EXPECT_THAT(Plan(kStart + 6 * kPeriod, {1}).end, ElementsAre(2, 0));
}

TEST_F(PoolScalerTest, WhatAPlanNeedsIsStartedAtOnce) {
  for (int period = 1; period <= 6; ++period) Plan(kStart + period * kPeriod, {1});
  const absl::Time now = kStart + 6 * kPeriod + absl::Seconds(1);
  EXPECT_EQ(Plan(now, {0, 1}), (PoolScaler::Orders{.start = {0}, .end = {}}));
  EXPECT_EQ(Plan(now + absl::Seconds(1), {1}), PoolScaler::Orders{}) << "between periods nothing ends";
}

TEST_F(PoolScalerTest, APeakWithinAPeriodCountsThoughItsEndIsQuiet) {
  for (int period = 1; period <= 8; ++period) {
    const absl::Time now = kStart + period * kPeriod;
    EXPECT_THAT(Plan(now - absl::Seconds(10), {0, 1, 2, 3}).end, IsEmpty());
    EXPECT_THAT(Plan(now, {}).end, IsEmpty());
  }
}

TEST(CapacityBookTest, TheLatestMeasurementOfJustTheseCircumstancesCounts) {
  const MeasuredCapacity like{.layout = "a", .strategy = "fedavg", .shape = "tree", .workers = 2, .reproducible = false};
  EXPECT_EQ(CapacityBook().Find(like), std::nullopt);
  std::vector<MeasuredCapacity> all(7, like);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].updates = static_cast<double>(i + 1);
    all[i].measured_us = 100;
  }
  all[0].layout = "b";
  all[1].strategy = "fedadam";
  all[2].shape = "flat";
  all[3].workers = 3;
  all[4].reproducible = true;
  all[5].measured_us = 200;
  EXPECT_EQ(CapacityBook(all).Find(like), 6);
}

}  // namespace
}  // namespace tributary::aggregator
