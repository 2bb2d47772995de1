#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "client/data/data.h"
#include "common/digest.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::AllOf;
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
  DataSpec Spec() const {
    DataSpec spec;
    spec.source = "text";
    spec.path = folder_.string();
    return spec;
  }
  std::filesystem::path folder_;
};

TEST_F(TextTest, CutsFilesIntoWindowsOfBytes) {
  std::string first(128, 'a'), second(128, 'b');
  first.back() = '\xC3', second.front() = '\xA9';  // é, cut in two
  Write("b.txt", std::string(130, 'c'));
  Write("a.txt", first + second + "the rest is not used");
  Write("test.txt", std::string(256, 't'));
  Write("readme.md", "not text");
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData data, LoadData(Spec(), Split::kTrain));
  EXPECT_EQ(data.examples->example_shape, (std::vector<int64_t>{128}));
  EXPECT_EQ(data.examples->labels, (std::vector<int64_t>{0, 0, 1})) << "the file's number, in name order";
  ASSERT_EQ(data.examples->x.size(), 3u * 128);
  EXPECT_EQ(data.examples->x[0], 'a');
  EXPECT_EQ(data.examples->x[127], 0xC3);
  EXPECT_EQ(data.examples->x[128], 0xA9);
  EXPECT_EQ(data.examples->x[383], 'c');
  EXPECT_EQ(data.files, (std::vector<std::vector<uint32_t>>{{0, 1}, {2}}));
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData test, LoadData(Spec(), Split::kTest));
  EXPECT_EQ(test.examples->count(), 2u);
}

TEST_F(TextTest, GivesEachClientItsFileAndHoldsOutATenth) {
  Write("de.txt", std::string(128 * 50, 'd'));
  Write("fr.txt", std::string(128 * 50, 'f'));
  DataSpec spec = Spec();
  spec.partition.kind = "by_file";
  DataCache cache;
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset shard, cache.ShardOf(spec, 1, 2));
  ASSERT_GT(shard.count(), 30u);
  for (const uint32_t index : shard.indices) EXPECT_EQ(shard.all->x[index * 128], 'f');
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset test, cache.TestSet(spec));
  EXPECT_EQ(test.count(), 10u);
}

TEST_F(TextTest, CutsTokensOfATokenizerIntoWindowsOfAnyLength) {
  const std::string json = R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 300}, "merges": ["a b"]}, "pre_tokenizer": {"type": "ByteLevel"}})";
  Write("a.txt", "ababaab");
  Write("tokenizer.json", json);
  DataSpec spec = Spec();
  spec.tokenizer = (folder_ / "tokenizer.json").string();
  spec.window = 2;
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData data, LoadData(spec, Split::kTrain));
  EXPECT_EQ(data.examples->example_shape, (std::vector<int64_t>{2}));
  EXPECT_EQ(data.files.at(0).size() + LoadData(spec, Split::kTest)->examples->count(), 2u) << "300 300 | 0 300";
  spec.tokenizer_sha256 = std::string(64, '0');
  EXPECT_THAT(LoadData(spec, Split::kTrain), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected the file whose SHA-256 is 0000")));
  spec.tokenizer_sha256 = Sha256Hex(std::as_bytes(std::span(json)));
  EXPECT_EQ(LoadData(spec, Split::kTrain)->examples->x, data.examples->x);
  Write("a.txt", "ab ab");
  EXPECT_THAT(LoadData(spec, Split::kTrain), StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("a.txt"), HasSubstr("no token for byte 0x20"))));
  spec.tokenizer = (folder_ / "none.json").string();
  EXPECT_THAT(LoadData(spec, Split::kTrain), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none.json")));
}

TEST_F(TextTest, NamesTheFileThatIsTooShort) {
  Write("a.txt", std::string(128, 'a'));
  Write("b.txt", "xy");
  EXPECT_THAT(LoadData(Spec(), Split::kTrain), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("b.txt: expected at least one window of 128 bytes, got 2")));
  Write("b.txt", "");
  EXPECT_THAT(LoadData(Spec(), Split::kTrain), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("b.txt")));
}

}  // namespace
}  // namespace tributary::client
