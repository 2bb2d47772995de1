#include "client/data/client_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>

#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

class ClientStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tributary-client-state-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::vector<float> Current(const std::string& job = "job-1") {
    const auto value = StateFiles(folder_).Current(job, "e");
    EXPECT_THAT(value, IsOk());
    return value.value_or(std::vector<float>());
  }
  fs::path folder_;
  const UpdateId first_{1, 2}, second_{1, 3};
};

TEST_F(ClientStateTest, StagedValuesCountOnlyOncePromoted) {
  const StateFiles state(folder_);
  EXPECT_THAT(Current(), IsEmpty());
  ASSERT_THAT(state.Stage("job-1", "e", first_, std::vector<float>{1, 2}), IsOk());
  EXPECT_THAT(Current(), IsEmpty());
  ASSERT_THAT(state.Promote("job-1", first_), IsOk());
  EXPECT_THAT(Current(), ElementsAre(1, 2));
  ASSERT_THAT(state.Promote("job-1", first_), IsOk());  // said again after a crash
  EXPECT_THAT(Current(), ElementsAre(1, 2));
  EXPECT_THAT(Current("job-2"), IsEmpty());
}

TEST_F(ClientStateTest, RefusedUpdatesLeaveTheStateAlone) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, std::vector<float>{1}), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_), IsOk());
  ASSERT_THAT(state.Stage("job-1", "e", second_, std::vector<float>{7}), IsOk());
  ASSERT_THAT(state.Discard("job-1", second_), IsOk());
  ASSERT_THAT(state.Promote("job-1", second_), IsOk());
  EXPECT_THAT(Current(), ElementsAre(1));
}

TEST_F(ClientStateTest, SweepKeepsWhatIsStagedForTheOutbox) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, std::vector<float>{1}), IsOk());
  ASSERT_THAT(state.Stage("job-2", "e", second_, std::vector<float>{2}), IsOk());
  ASSERT_THAT(state.Sweep({second_}), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_), IsOk());
  ASSERT_THAT(state.Promote("job-2", second_), IsOk());
  EXPECT_THAT(Current("job-1"), IsEmpty());
  EXPECT_THAT(Current("job-2"), ElementsAre(2));
}

TEST_F(ClientStateTest, DamagedFilesAndImpossibleNamesAreErrors) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, std::vector<float>{1, 2, 3}), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_), IsOk());
  std::fstream(folder_ / "job-1" / "e", std::ios::in | std::ios::out).seekp(20).put('x');
  EXPECT_THAT(state.Current("job-1", "e"), StatusIs(absl::StatusCode::kDataLoss));
  for (const std::string job : {"..", "a/b", ""}) {
    EXPECT_THAT(state.Stage(job, "e", first_, std::vector<float>{1}), StatusIs(absl::StatusCode::kInvalidArgument)) << job;
  }
}

}  // namespace
}  // namespace tributary::client
