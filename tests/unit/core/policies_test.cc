#include "aggregator/core/policies.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class SynchronousPoliciesTest : public ::testing::Test {
 protected:
  SynchronousPoliciesTest() {
    cohort_.size = 4;
    cohort_.quorum = 2;
    cohort_.deadline = absl::Seconds(60);
    cohort_.over_select = 1.5;
    for (int i = 0; i < 20; ++i) idle_.insert(fmt::format("c{:02}", i));
  }
  RoundView View(absl::Duration since_opened = absl::ZeroDuration()) {
    RoundView view;
    view.version = 3;
    view.opened = opened_;
    view.now = opened_ + since_opened;
    view.draw = draw_;
    view.idle = &idle_;
    view.outstanding = &outstanding_;
    view.outstanding_current = static_cast<int64_t>(outstanding_.size());
    view.contributions = &contributions_;
    return view;
  }
  void Outstanding(const std::string& client, absl::Duration since_opened = absl::ZeroDuration()) {
    outstanding_[client] = {.client = client, .task = outstanding_.size() + 1, .version = 3, .issued = opened_ + since_opened};
  }
  void Contribute(const std::string& client) {
    const UpdateKeyRef key{.client = client, .task = 100 + contributions_.size(), .update = {.hi = 1, .lo = contributions_.size()}};
    TakenUpdate update;
    update.contributor.key = key;
    contributions_.Add(std::move(update));
  }
  CohortSpec cohort_;
  absl::Time opened_ = absl::UnixEpoch() + absl::Hours(1);
  uint64_t draw_ = 1;
  std::set<std::string> idle_;
  std::map<std::string, OutstandingTask> outstanding_;
  TakenUpdates contributions_;
};

TEST_F(SynchronousPoliciesTest, DrawsSizeTimesOverSelectDistinctClients) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  const std::vector<std::string> drawn = policies.admission->Admit(View(), Moment::kVersionOpened);
  EXPECT_THAT(std::set<std::string>(drawn.begin(), drawn.end()), SizeIs(6));
  EXPECT_EQ(policies.admission->Admit(View(), Moment::kVersionOpened), drawn);  // the seed decides
}

TEST_F(SynchronousPoliciesTest, EveryClientIsDrawnAboutEquallyOften) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  std::map<std::string, int> times;
  for (draw_ = 0; draw_ < 4000; ++draw_) {
    for (const std::string& client : policies.admission->Admit(View(), Moment::kVersionOpened)) ++times[client];
  }
  ASSERT_THAT(times, SizeIs(20));
  // Mean 1200, standard deviation √(4000·0.3·0.7) = 29: six of them.
  for (const auto& [client, count] : times) EXPECT_NEAR(count, 1200, 174) << client;
}

TEST_F(SynchronousPoliciesTest, FillsOnlyTheGapsAndNeverAsksAContributorAgain) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  idle_ = {"a", "b", "c"};
  Outstanding("x");
  Outstanding("y");
  for (const char* client : {"a", "z", "w"}) Contribute(client);
  EXPECT_THAT(policies.admission->Admit(View(), Moment::kClientIdle), SizeIs(1));
  contributions_.Remove({.hi = 1, .lo = 2});
  EXPECT_THAT(policies.admission->Admit(View(), Moment::kClientIdle), ElementsAre("b", "c"));
}

TEST_F(SynchronousPoliciesTest, ATaskOlderThanTheDeadlineNoLongerHoldsAPlace) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  idle_ = {"a", "b", "c", "d", "e", "f", "g"};
  for (uint64_t i = 0; i < 6; ++i) Outstanding(fmt::format("x{}", i));
  EXPECT_THAT(policies.admission->Admit(View(absl::Seconds(59)), Moment::kTick), IsEmpty());
  EXPECT_THAT(policies.admission->Admit(View(absl::Seconds(60)), Moment::kTick), SizeIs(6));
}

TEST_F(SynchronousPoliciesTest, ClosesWhenTheCohortIsCompleteOrWithAQuorumAfterTheDeadline) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  Contribute("a");
  EXPECT_FALSE(policies.trigger->ShouldClose(View(absl::Seconds(61))).has_value());
  Contribute("b");
  EXPECT_FALSE(policies.trigger->ShouldClose(View(absl::Seconds(59))).has_value());
  EXPECT_EQ(policies.trigger->ShouldClose(View(absl::Seconds(60))), "deadline with 2 of 4 updates");
  Contribute("c");
  Contribute("d");
  EXPECT_EQ(policies.trigger->ShouldClose(View()), "cohort complete");
  EXPECT_EQ(policies.trigger->target(), 4);
}

TEST_F(SynchronousPoliciesTest, WithoutADeadlineItWaitsForTheWholeCohort) {
  cohort_.deadline = absl::InfiniteDuration();
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  for (const char* client : {"a", "b", "c"}) Contribute(client);
  EXPECT_FALSE(policies.trigger->ShouldClose(View(absl::Hours(10000))).has_value());
  EXPECT_EQ(policies.trigger->NextCheck(View()), absl::InfiniteFuture());
}

TEST_F(SynchronousPoliciesTest, NextCheckIsTheDeadlineThenTheNextTaskToGrowOld) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  EXPECT_EQ(policies.trigger->NextCheck(View()), opened_ + absl::Seconds(60));
  Outstanding("x");
  Outstanding("y", absl::Seconds(10));
  EXPECT_EQ(policies.trigger->NextCheck(View(absl::Seconds(60))), opened_ + absl::Seconds(70));
}

TEST_F(SynchronousPoliciesTest, OnlyTheOpenVersionIsFresh) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  EXPECT_EQ(policies.staleness->Factor(0), 1.0);
  EXPECT_FALSE(policies.staleness->Factor(1).has_value());
}

class SampledPoliciesTest : public SynchronousPoliciesTest {
 protected:
  SampledPoliciesTest() {
    cohort_ = {.size = 4, .population = 20, .draw_key = 7};
    cohort_.deadline = absl::Seconds(60);
  }
  RoundView At(uint64_t version) {
    RoundView view = View();
    view.version = version;
    return view;
  }
};

TEST_F(SampledPoliciesTest, WaitsForThePopulationThenDrawsOnceAndFillsNoGap) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  const std::set<std::string> all = idle_;
  idle_.erase(std::prev(idle_.end()));
  EXPECT_THAT(policies.admission->Admit(View(), Moment::kClientIdle), IsEmpty());
  idle_ = all;
  const std::vector<std::string> drawn = policies.admission->Admit(View(), Moment::kClientIdle);
  ASSERT_THAT(drawn, SizeIs(4));
  // One of them is gone, a newcomer is there, and one that has contributed is idle again: nobody else is asked.
  Contribute(drawn[0]);
  idle_.erase(drawn[1]);
  idle_.insert("newcomer");
  EXPECT_THAT(policies.admission->Admit(View(), Moment::kTaskLost), ElementsAre(drawn[2], drawn[3]));
  EXPECT_FALSE(policies.trigger->ShouldClose(View()).has_value());
  for (int i = 1; i < 4; ++i) Contribute(drawn[static_cast<size_t>(i)]);
  EXPECT_TRUE(policies.trigger->ShouldClose(View()).has_value());
}

TEST_F(SampledPoliciesTest, AnotherProcessDrawsTheSameCohortFromTheSameClients) {
  const std::vector<std::string> drawn = MakeSynchronousPolicies(cohort_).admission->Admit(View(), Moment::kVersionOpened);
  EXPECT_EQ(MakeSynchronousPolicies(cohort_).admission->Admit(View(), Moment::kVersionOpened), drawn);
  cohort_.draw_key = 8;
  EXPECT_NE(MakeSynchronousPolicies(cohort_).admission->Admit(View(), Moment::kVersionOpened), drawn);
}

TEST_F(SampledPoliciesTest, FixedSizeDrawsEveryClientEquallyOften) {
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  std::map<std::string, int> times;
  for (uint64_t version = 0; version < 4000; ++version) {
    for (const std::string& client : policies.admission->Admit(At(version), Moment::kVersionOpened)) ++times[client];
  }
  ASSERT_THAT(times, SizeIs(20));
  for (const auto& [client, count] : times) EXPECT_NEAR(count, 800, 6 * 25.3) << client;  // √(4000·0.2·0.8)
}

// Poisson: the size of the cohort is binomial and clients are drawn independently; with a fixed size the covariance would be negative.
TEST_F(SampledPoliciesTest, PoissonDrawsEachClientByItself) {
  cohort_.poisson = true;
  cohort_.rate = 0.3;
  const RoundPolicies policies = MakeSynchronousPolicies(cohort_);
  constexpr int kVersions = 20'000;
  double sum = 0, squares = 0, both = 0, one = 0, other = 0;
  for (uint64_t version = 0; version < kVersions; ++version) {
    const auto drawn = policies.admission->Admit(At(version), Moment::kVersionOpened);
    const auto size = static_cast<double>(drawn.size());
    sum += size;
    squares += size * size;
    const bool a = std::count(drawn.begin(), drawn.end(), "c03") > 0, b = std::count(drawn.begin(), drawn.end(), "c11") > 0;
    one += a;
    other += b;
    both += a && b;
  }
  const double mean = sum / kVersions;
  EXPECT_NEAR(mean, 6, 6 * std::sqrt(4.2 / kVersions));
  EXPECT_NEAR(squares / kVersions - mean * mean, 4.2, 0.25);  // N q (1 − q)
  EXPECT_NEAR(both / kVersions - one / kVersions * other / kVersions, 0, 6 * 0.21 / std::sqrt(kVersions));
}

}  // namespace
}  // namespace tributary::aggregator
