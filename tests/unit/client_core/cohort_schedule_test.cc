#include "client/core/cohort_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace tributary::client {
namespace {

std::vector<uint32_t> Indices(uint32_t first, size_t count) {
  std::vector<uint32_t> indices(count);
  std::iota(indices.begin(), indices.end(), first);
  return indices;
}

LocalSpec Local(int64_t epochs, int64_t batch, double lr = 0.5) {
  LocalSpec local;
  local.epochs = epochs;
  local.batch = batch;
  local.lr = lr;
  return local;
}

// What one call of Next gave.
struct Part {
  Part(CohortSchedule& schedule, uint64_t steps, size_t width) : batch(schedule.batch()), width(width) {
    rows.resize(steps * width * batch);
    shares.resize(rows.size());
    rates.resize(steps * width);
    schedule.Next(steps, width, rows, shares, rates);
  }
  std::vector<int64_t> Rows(uint64_t step, size_t place) const {
    std::vector<int64_t> seen;
    for (size_t i = 0; i < batch; ++i) {
      if (shares[(step * width + place) * batch + i] > 0) seen.push_back(rows[(step * width + place) * batch + i]);
    }
    return seen;
  }
  double Share(uint64_t step, size_t place) const {
    const double* first = &shares[(step * width + place) * batch];
    return std::accumulate(first, first + batch, 0.0);
  }
  size_t batch, width;
  std::vector<int64_t> rows;
  std::vector<double> shares, rates;
};

TEST(CohortScheduleTest, GivesEachClientTheMinibatchesItWouldSeeAlone) {
  const std::vector<uint32_t> few = Indices(100, 5), many = Indices(200, 11);
  const std::vector<CohortClient> clients = {{few, Local(2, 4, 0.1), 7}, {many, Local(2, 4, 0.2), 9}};
  CohortSchedule schedule(clients);
  ASSERT_EQ(schedule.clients(), 2U);
  EXPECT_EQ(schedule.batch(), 5U) << "of five examples the rest of one joins the batch before it";
  ASSERT_EQ(schedule.member(0), 1U) << "most steps first";
  ASSERT_EQ(schedule.steps(), 6U);
  EXPECT_EQ(schedule.steps_of(1), 2U);
  EXPECT_EQ(schedule.training(0), 2U);
  EXPECT_EQ(schedule.training(2), 1U);
  EXPECT_EQ(schedule.training(6), 0U);

  BatchOrder order_many(11, 4, 9), order_few(5, 4, 7);
  uint64_t done = 0;
  for (const uint64_t steps : {4U, 2U}) {  // in parts, whatever their length
    const Part part(schedule, steps, 2);
    for (uint64_t s = 0; s < steps; ++s, ++done) {
      for (size_t place = 0; place < 2; ++place) {
        const uint64_t own = schedule.steps_of(place);
        std::vector<int64_t> expected;
        if (done < own) {
          for (uint32_t position : place == 0 ? order_many.At(done) : order_few.At(done)) expected.push_back((place == 0 ? many : few)[position]);
        }
        EXPECT_EQ(part.Rows(s, place), expected) << "step " << done << ", place " << place;
        EXPECT_EQ(schedule.BatchSize(place, done), expected.size());
        EXPECT_NEAR(part.Share(s, place), expected.empty() ? 0 : 1, 1e-15);
        EXPECT_EQ(part.rates[s * 2 + place], expected.empty() ? 0 : place == 0 ? 0.2 : 0.1);
      }
    }
  }
}

TEST(CohortScheduleTest, LeavesPlacesAndStepsThatAreNotThereEmpty) {
  const std::vector<uint32_t> indices = Indices(0, 3);
  const std::vector<CohortClient> clients = {{indices, Local(1, 8), 1}};
  CohortSchedule schedule(clients);
  EXPECT_EQ(schedule.batch(), 3U) << "no wider than the shard";
  const Part part(schedule, 2, 3);
  EXPECT_EQ(part.Rows(0, 0).size(), 3U);
  for (size_t place = 1; place < 3; ++place) EXPECT_TRUE(part.Rows(0, place).empty());
  EXPECT_TRUE(part.Rows(1, 0).empty());
  EXPECT_EQ(part.rates, (std::vector<double>{0.5, 0, 0, 0, 0, 0}));
}

TEST(CohortScheduleTest, TakesStepsInPlaceOfEpochs) {
  const std::vector<uint32_t> indices = Indices(0, 4);
  LocalSpec local = Local(1, 2);
  local.steps = 5;
  const std::vector<CohortClient> clients = {{indices, local, 1}};
  CohortSchedule schedule(clients);
  EXPECT_EQ(schedule.steps(), 5U);
  const Part part(schedule, 5, 1);
  for (uint64_t s = 0; s < 5; ++s) EXPECT_EQ(part.Rows(s, 0).size(), 2U);
}

}  // namespace
}  // namespace tributary::client
