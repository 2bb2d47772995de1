#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "client/data/data.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

class TextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name, std::ios::binary) << text; }
  DataSpec Spec(int64_t window) const {
    DataSpec spec;
    spec.source = "text";
    spec.path = folder_.string();
    spec.window = window;
    return spec;
  }
  std::filesystem::path folder_;
};

TEST_F(TextTest, CutsFilesIntoWindowsOfBytes) {
  Write("b.txt", "\xC3\xA9ttext");  // é is two bytes
  Write("a.txt", "0123456789");
  Write("test.txt", "heldout!");
  Write("readme.md", "not text");
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData data, LoadData(Spec(4), Split::kTrain));
  EXPECT_EQ(data.examples->example_shape, (std::vector<int64_t>{4}));
  EXPECT_EQ(data.examples->labels, (std::vector<int64_t>{0, 0, 1})) << "the file's number, in name order";
  EXPECT_EQ(data.examples->x, (std::vector<float>{'0', '1', '2', '3', '4', '5', '6', '7', 0xC3, 0xA9, 't', 't'})) << "what is left at the end is not used";
  EXPECT_EQ(data.files, (std::vector<std::vector<uint32_t>>{{0, 1}, {2}}));
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData test, LoadData(Spec(4), Split::kTest));
  EXPECT_EQ(test.examples->count(), 2u);
}

TEST_F(TextTest, GivesEachClientItsFileAndHoldsOutATenth) {
  Write("de.txt", std::string(400, 'd'));
  Write("fr.txt", std::string(400, 'f'));
  DataSpec spec = Spec(8);
  spec.partition.kind = "by_file";
  DataCache cache;
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset shard, cache.ShardOf(spec, 1, 2));
  ASSERT_GT(shard.count(), 30u);
  for (const uint32_t index : shard.indices) EXPECT_EQ(shard.all->x[index * 8], 'f');
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset test, cache.TestSet(spec));
  EXPECT_EQ(test.count(), 10u);
  spec.window = 4;
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset other, cache.ShardOf(spec, 1, 2));
  EXPECT_EQ(other.all->example_shape, (std::vector<int64_t>{4})) << "another window is another set of examples";
}

TEST_F(TextTest, NamesTheFileThatIsTooShort) {
  Write("a.txt", "0123456789");
  Write("b.txt", "xy");
  EXPECT_THAT(LoadData(Spec(4), Split::kTrain), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("b.txt: expected at least one window of 4 bytes, got 2")));
  Write("b.txt", "");
  EXPECT_THAT(LoadData(Spec(4), Split::kTrain), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("b.txt")));
}

}  // namespace
}  // namespace tributary::client
