#include "client/data/client_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>

#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAreArray;
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
  std::vector<std::byte> Current(const std::string& job = "job-1") {
    const auto value = StateFiles(folder_).Current(job, "e");
    EXPECT_THAT(value, IsOk());
    return value.ok() && *value ? (*value)->bytes : std::vector<std::byte>();
  }
  static std::vector<std::byte> Bytes(std::initializer_list<int> values) {
    std::vector<std::byte> bytes;
    for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
    return bytes;
  }
  fs::path folder_;
  const UpdateId first_{1, 2}, second_{1, 3};
};

TEST_F(ClientStateTest, StagedValuesCountOnlyOncePromoted) {
  const StateFiles state(folder_);
  EXPECT_THAT(Current(), IsEmpty());
  ASSERT_THAT(state.Stage("job-1", "e", first_, Bytes({1, 2})), IsOk());
  EXPECT_THAT(Current(), IsEmpty());
  ASSERT_THAT(state.Promote("job-1", first_, 1), IsOk());
  EXPECT_THAT(Current(), ElementsAreArray(Bytes({1, 2})));
  ASSERT_THAT(state.Promote("job-1", first_, 1), IsOk());  // said again after a crash
  EXPECT_THAT(Current(), ElementsAreArray(Bytes({1, 2})));
  EXPECT_THAT(Current("job-2"), IsEmpty());
}

TEST_F(ClientStateTest, RefusedUpdatesLeaveTheStateAlone) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, Bytes({1})), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_, 1), IsOk());
  ASSERT_THAT(state.Stage("job-1", "e", second_, Bytes({7})), IsOk());
  ASSERT_THAT(state.Discard("job-1", second_), IsOk());
  ASSERT_THAT(state.Promote("job-1", second_, 2), IsOk());
  EXPECT_THAT(Current(), ElementsAreArray(Bytes({1})));
}

TEST_F(ClientStateTest, SweepKeepsWhatIsStagedForTheOutbox) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, Bytes({1})), IsOk());
  ASSERT_THAT(state.Stage("job-2", "e", second_, Bytes({2})), IsOk());
  ASSERT_THAT(state.Sweep({second_}), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_, 1), IsOk());
  ASSERT_THAT(state.Promote("job-2", second_, 2), IsOk());
  EXPECT_THAT(Current("job-1"), IsEmpty());
  EXPECT_THAT(Current("job-2"), ElementsAreArray(Bytes({2})));
}

TEST_F(ClientStateTest, TheNewestVersionHoldsWhateverACrashLeftOfTheOneBefore) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, Bytes({1})), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_, 9), IsOk());
  fs::copy_file(folder_ / "job-1" / "e.v9", folder_ / "job-1" / "e.v8");  // as if the older one had not been removed yet
  ASSERT_THAT(state.Stage("job-1", "e", second_, Bytes({2})), IsOk());
  ASSERT_THAT(state.Promote("job-1", second_, 10), IsOk());
  const auto current = state.Current("job-1", "e");
  ASSERT_THAT(current, IsOk());
  ASSERT_TRUE(current->has_value());
  EXPECT_EQ((*current)->version, 10u);
  EXPECT_THAT((*current)->bytes, ElementsAreArray(Bytes({2})));
  ASSERT_THAT(state.Sweep({}), IsOk());
  EXPECT_THAT(Current(), ElementsAreArray(Bytes({2})));
  EXPECT_FALSE(fs::exists(folder_ / "job-1" / "e.v8"));
}

TEST_F(ClientStateTest, AStrategysStateComesBackBitForBitWithTheVersionThatCountedIt) {
  const StateFiles state(folder_);
  EXPECT_EQ(*ReadClientState(state, "job-1"), ClientState());
  const ClientState written{.vectors = {{"c_i", {0.1, -0.0, 1e-310}}, {"w", {}}}};
  const std::string bytes = EncodeClientState(written);
  ASSERT_THAT(state.Stage("job-1", kStrategyState, first_, std::as_bytes(std::span(bytes))), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_, 4), IsOk());
  const auto read = ReadClientState(state, "job-1");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->vectors, written.vectors);
  EXPECT_EQ(read->version, 4u);
  ASSERT_THAT(state.Stage("job-1", kStrategyState, second_, Bytes({1, 2, 3})), IsOk());
  ASSERT_THAT(state.Promote("job-1", second_, 5), IsOk());
  EXPECT_THAT(ReadClientState(state, "job-1"), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(ClientStateTest, DamagedFilesAndImpossibleNamesAreErrors) {
  const StateFiles state(folder_);
  ASSERT_THAT(state.Stage("job-1", "e", first_, Bytes({1, 2, 3})), IsOk());
  ASSERT_THAT(state.Promote("job-1", first_, 1), IsOk());
  std::fstream(folder_ / "job-1" / "e.v1", std::ios::in | std::ios::out).seekp(17).put('x');
  EXPECT_THAT(state.Current("job-1", "e"), StatusIs(absl::StatusCode::kDataLoss));
  for (const std::string job : {"..", "a/b", ""}) {
    EXPECT_THAT(state.Stage(job, "e", first_, Bytes({1})), StatusIs(absl::StatusCode::kInvalidArgument)) << job;
  }
}

}  // namespace
}  // namespace tributary::client
