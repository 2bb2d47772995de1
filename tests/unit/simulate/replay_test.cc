// Replay of a record under another strategy than the recorded one.
#include "simulate/replay.h"

#include <filesystem>

#include "aggregator/state/state_store.h"
#include "tests/unit/simulate/fixtures.h"

namespace tributary::simulate {
namespace {

namespace fs = std::filesystem;
using aggregator::StateStore;
using tributary::testing::IsOk;

class ReplayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "trib-replay-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    recorded_ = Open("recorded");
    DrawingLearner learner(false);
    JobSpec spec = Job("fedavg", true);
    spec.record = true;
    spec.cohort.size = 3;  // of seven: rows of those who are not asked matter
    spec.stop.versions = 6;
    TRIB_ASSERT_OK_AND_ASSIGN(const SimulationResult result, RunWith(spec, &learner, TensorKind::kTrainable, recorded_.get()));
    ASSERT_EQ(result.state, SimulationState::kDone) << result.reason;
    job_ = result.id;
  }
  void TearDown() override {
    recorded_.reset();
    std::error_code ignored;
    fs::remove_all(dir_, ignored);
  }
  std::unique_ptr<StateStore> Open(const std::string& name) {
    auto opened = StateStore::Open({.dir = dir_ / name});
    EXPECT_THAT(opened, IsOk());
    return *std::move(opened);
  }
  // The record, as of a job whose clients all began anew from version `anew` on, as one of them had lost its state.
  std::unique_ptr<StateStore> BegunAnew(uint64_t anew) {
    std::unique_ptr<StateStore> copy = Open("anew");
    const auto job = recorded_->GetJob(job_);
    const auto versions = recorded_->ListVersions(job_);
    const auto updates = recorded_->ListRecords(job_);
    EXPECT_TRUE(job.ok() && versions.ok() && updates.ok());
    EXPECT_EQ(updates->size(), 18U);
    for (const UpdateId& id : *updates) {
      const auto bytes = recorded_->GetRecord(job_, id);
      EXPECT_THAT(bytes, IsOk());
      EXPECT_THAT(copy->PutRecord(job_, id, *bytes), IsOk());
    }
    for (v1::VersionRow row : *versions) {
      std::vector<std::byte> tensors(row.info().bytes());
      EXPECT_THAT(recorded_->ReadTensors(job_, row.info().version(), tensors, /*verify=*/true), IsOk());
      if (row.info().version() >= anew) row.mutable_info()->set_state_epoch(anew);
      aggregator::VersionCommit commit;
      commit.job = *job;
      commit.version = row;
      commit.tensors = tensors;
      EXPECT_THAT(copy->CommitVersion(std::move(commit)), IsOk());
    }
    return copy;
  }
  std::string ReplayedModel(const StateStore& store, const std::string& strategy) {
    StrategySpec spec;
    spec.name = strategy;
    const auto replayed = Replay(store, job_, spec);
    EXPECT_THAT(replayed, IsOk());
    EXPECT_EQ(replayed->versions.size(), 6U);
    EXPECT_EQ(replayed->refused, 0U) << replayed->why_refused;
    return replayed->versions.back().sha256;
  }

  fs::path dir_;
  std::unique_ptr<StateStore> recorded_;
  std::string job_;
};

TEST_F(ReplayTest, GivesTheRecordsBits) {
  TRIB_ASSERT_OK_AND_ASSIGN(const ReplayResult result, Replay(*recorded_, job_, std::nullopt));
  ASSERT_EQ(result.versions.size(), 6U);
  for (const ReplayedVersion& version : result.versions) EXPECT_EQ(version.sha256, version.recorded_sha256) << version.version;
}

// A strategy that keeps its clients' latest updates is not concerned by states that it never had.
TEST_F(ReplayTest, UnderAnotherStrategyKeepsItsRowsWhereTheRecordsClientsBeganAnew) {
  const std::unique_ptr<StateStore> anew = BegunAnew(3);
  const std::string plain = ReplayedModel(*recorded_, "fedavg");
  EXPECT_EQ(ReplayedModel(*anew, "fedavg"), plain);
  for (const char* const strategy : {"mifa", "fedvarp"}) {
    const std::string expected = ReplayedModel(*recorded_, strategy);
    EXPECT_NE(expected, plain) << strategy << ": its rows made no difference";
    EXPECT_EQ(ReplayedModel(*anew, strategy), expected) << strategy;
  }
}

}  // namespace
}  // namespace tributary::simulate
