// When the store may forget: by count of versions, by age of updates, and never what could still be counted twice.
#include "aggregator/coordinator/housekeeping.h"

#include <gmock/gmock.h>

#include "common/clock.h"
#include "tests/integration/coordinator/federation_fixture.h"
#include "tests/integration/state/state_fixture.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

constexpr int64_t kDay = 24LL * 3600 * 1'000'000;
constexpr uint64_t kVersions = 40;  // more than one call's worth

class HousekeepingTest : public ::testing::Test {
 protected:
  // One version a day, the first at day 100; every contribution was `staleness` commits late.
  void MakeStore(uint64_t staleness = 0) {
    TRIB_ASSERT_OK_AND_ASSIGN(store_, StateStore::Open({.dir = dir_.store()}));
    for (uint64_t version = 0; version < kVersions; ++version) {
      const auto tensors = TestTensors(version, 64);
      VersionCommit commit = TestCommit("a", version, tensors, version == 0 ? 0 : 2);
      commit.version.mutable_info()->set_committed_us(Day(100 + static_cast<int64_t>(version)));
      for (v1::Contributor& contributor : *commit.version.mutable_info()->mutable_contributors()) contributor.set_staleness(staleness);
      ASSERT_THAT(store_->CommitVersion(commit), IsOk());
    }
  }
  static int64_t Day(int64_t day) { return day * kDay; }
  // As often as it says that there is more; returns how often.
  int Tidy(Housekeeping& housekeeping, uint64_t stale_below, int64_t now_us) {
    for (int calls = 1;; ++calls) {
      const absl::StatusOr<bool> more = housekeeping.Tidy("a", [&](uint64_t base) { return base < stale_below; }, now_us);
      EXPECT_THAT(more, IsOk());
      if (!more.ok() || !*more) return calls;
    }
  }
  std::vector<uint64_t> Versions(bool (*which)(const v1::VersionRow&)) {
    std::vector<uint64_t> found;
    const auto rows = store_->ListVersions("a");
    for (const v1::VersionRow& row : rows.value()) {
      if (which(row)) found.push_back(row.info().version());
    }
    return found;
  }
  std::vector<uint64_t> WithTensors() { return Versions([](const v1::VersionRow& row) { return row.info().pruned_us() == 0; }); }
  // Of versions that have contributors.
  uint64_t FirstWithDedupeRows() {
    for (uint64_t version = 1; version < kVersions; ++version) {
      if (store_->GetUpdate("a", TestUpdate(version, 0)).ok()) return version;
    }
    return kVersions;
  }

  TempDir dir_;
  std::unique_ptr<StateStore> store_;
};

TEST_F(HousekeepingTest, TensorsOfOldVersionsGoInSmallSteps) {
  MakeStore();
  Housekeeping housekeeping(store_.get(), {.newest = 3, .every = 10});
  EXPECT_GT(Tidy(housekeeping, 0, Day(101)), 1);
  EXPECT_THAT(WithTensors(), ElementsAre(0, 10, 20, 30, 37, 38, 39));
  EXPECT_EQ(FirstWithDedupeRows(), 1u);
  EXPECT_EQ(Tidy(housekeeping, 0, Day(101)), 1);
  // A restart with a smaller setting takes up what the larger one had kept.
  Housekeeping next(store_.get(), {.newest = 2});
  Tidy(next, 0, Day(101));
  EXPECT_THAT(WithTensors(), ElementsAre(0, 38, 39));
  TRIB_ASSERT_OK_AND_ASSIGN(const auto findings, store_->Verify(nullptr));
  EXPECT_THAT(findings, IsEmpty());
}

TEST_F(HousekeepingTest, ByDefaultAllTensorsStay) {
  MakeStore();
  Housekeeping housekeeping(store_.get(), {});
  Tidy(housekeeping, 0, Day(10'000));
  EXPECT_EQ(WithTensors().size(), kVersions);
}

TEST_F(HousekeepingTest, DedupeRowsGoWhenTheirDaysAreOverAndTheirUpdatesTooStale) {
  MakeStore();
  Housekeeping housekeeping(store_.get(), {});
  Tidy(housekeeping, /*stale_below=*/kVersions, Day(107));
  EXPECT_EQ(FirstWithDedupeRows(), 1u) << "version 1 is of day 101: six days";
  Tidy(housekeeping, kVersions, Day(108));
  EXPECT_EQ(FirstWithDedupeRows(), 2u);
  // Old enough for ever, but an update made from version 10 would still be taken: it is of version 11.
  Tidy(housekeeping, /*stale_below=*/10, Day(10'000));
  EXPECT_EQ(FirstWithDedupeRows(), 11u);
  Tidy(housekeeping, 11, Day(10'000));
  EXPECT_EQ(FirstWithDedupeRows(), 12u);
  Tidy(housekeeping, kVersions, Day(10'000));
  EXPECT_EQ(FirstWithDedupeRows(), kVersions);
  TRIB_ASSERT_OK_AND_ASSIGN(const auto findings, store_->Verify(nullptr));
  EXPECT_THAT(findings, IsEmpty());
}

TEST_F(HousekeepingTest, StaleContributionsCountFromTheVersionTheyWereMadeFrom) {
  MakeStore(/*staleness=*/5);
  Housekeeping housekeeping(store_.get(), {});
  // Version v holds updates made from v - 6: those from below 10 are refused now.
  Tidy(housekeeping, 10, Day(10'000));
  EXPECT_EQ(FirstWithDedupeRows(), 16u);
}

TEST_F(HousekeepingTest, AClockThatWasSetBackForgetsNothing) {
  MakeStore();
  Housekeeping housekeeping(store_.get(), {});
  Tidy(housekeeping, kVersions, 0);
  EXPECT_EQ(FirstWithDedupeRows(), 1u);
}

TEST_F(HousekeepingTest, AJobWithoutVersionsIsNothingToDo) {
  TRIB_ASSERT_OK_AND_ASSIGN(store_, StateStore::Open({.dir = dir_.store()}));
  Housekeeping housekeeping(store_.get(), {.newest = 2});
  EXPECT_EQ(Tidy(housekeeping, 0, Day(1)), 1);
}

class RetentionInAJobTest : public FederationTest {
 protected:
  void SetUp() override {
    FederationTest::SetUp();
    Stop();
    options_.retention = {.newest = 2, .every = 0, .dedupe_rows = absl::ZeroDuration()};
    Start();
  }
};

TEST_F(RetentionInAJobTest, OldVersionsAreToldButNotKeptAndTheJobGoesOn) {
  const std::string job = Submit("", /*cohort=*/1, /*versions=*/5);
  TestClient client = Attach("a");
  std::optional<Upload> first;
  for (int version = 0; version < 5; ++version) {
    const Upload upload = MakeUpdate(client, AwaitTask(client), 1);
    if (!first) first = upload;
    ASSERT_THAT(Send(upload), IsOk());
  }
  AwaitState(job, v1::JOB_STATE_DONE);
  EXPECT_TRUE(Until([&] { return Query(*first).state() == v1::UPDATE_STATE_EXPIRED; })) << "its dedupe row stays";
  EXPECT_TRUE(Until([&] {
    const auto versions = coordinator_->ListVersions(job);
    return versions.ok() && versions->size() == 6 && (*versions)[3].pruned_us() != 0;
  }));
  v1::GetVersionRequest request;
  request.set_job(job);
  request.set_version(2);
  EXPECT_THAT(coordinator_->ExportVersion(request), StatusIs(absl::StatusCode::kNotFound, HasSubstr("kept: 0, 4, 5")));
  EXPECT_EQ(Value(job, "w", 0, 5), 5.0f);
  EXPECT_EQ(Value(job, "w", 0, 4), 4.0f);
  // What was counted and forgotten is not counted again.
  EXPECT_FALSE(Send(*first).ok());
  Stop();
  Start();
  EXPECT_EQ(Value(job, "w", 0, 5), 5.0f);
  EXPECT_EQ(coordinator_->GetJob(job)->updates_committed(), 5u);
}

}  // namespace
}  // namespace tributary::aggregator
