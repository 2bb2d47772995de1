#include "client/data/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "common/safetensors.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::StatusIs;

class DataTest : public ::testing::Test {
 protected:
  DataTest() {
    std::string pattern = (fs::temp_directory_path() / "data_test.XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~DataTest() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name, std::ios::binary) << text; }

  // x [count, 2] all equal to `value`, y [count] = 0, 1, 0, 1, …
  void WriteTensors(const std::string& name, float value, int64_t count) {
    std::string data;
    for (int64_t i = 0; i < 2 * count; ++i) data.append(reinterpret_cast<const char*>(&value), sizeof(value));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t label = i % 2;
      data.append(reinterpret_cast<const char*>(&label), sizeof(label));
    }
    std::string header = fmt::format("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[{0},2],\"data_offsets\":[0,{1}]}},"
                                     "\"y\":{{\"dtype\":\"I64\",\"shape\":[{0}],\"data_offsets\":[{1},{2}]}}}}",
                                     count, 8 * count, 16 * count);
    while (header.size() % 8 != 0) header += ' ';
    const uint64_t size = header.size();
    Write(name, std::string(reinterpret_cast<const char*>(&size), 8) + header + data);
  }

  DataSpec Spec(const std::string& source, const std::string& path) {
    DataSpec spec;
    spec.source = source;
    spec.path = (folder_ / path).string();
    spec.seed = 5;
    return spec;
  }

  fs::path folder_;
};

TEST_F(DataTest, HoldsATenthOfACsvOutWithoutOverlap) {
  std::string text = "x,y\n";
  for (int i = 0; i < 100; ++i) text += fmt::format("{},{}\n", i, i % 3);
  Write("t.csv", text);
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData train, LoadData(Spec("csv", "t.csv"), Split::kTrain));
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData test, LoadData(Spec("csv", "t.csv"), Split::kTest));
  EXPECT_EQ(train.examples->count(), 90U);
  EXPECT_EQ(test.examples->count(), 10U);
  EXPECT_EQ(test.examples->classes, 3);
  std::set<float> seen(train.examples->x.begin(), train.examples->x.end());
  seen.insert(test.examples->x.begin(), test.examples->x.end());
  EXPECT_THAT(seen, SizeIs(100));
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(test.examples->labels[i], static_cast<int64_t>(test.examples->x[i]) % 3);
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData again, LoadData(Spec("csv", "t.csv"), Split::kTest));
  EXPECT_EQ(again.examples->x, test.examples->x);
  DataSpec other = Spec("csv", "t.csv");
  other.seed = 6;
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData different, LoadData(other, Split::kTest));
  EXPECT_NE(different.examples->x, test.examples->x);
}

TEST_F(DataTest, UsesANamedTestFileInsteadOfHoldingOut) {
  Write("t.csv", "1,0\n2,1\n");
  Write("t.test.csv", "7,1\n");
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData train, LoadData(Spec("csv", "t.csv"), Split::kTrain));
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData test, LoadData(Spec("csv", "t.csv"), Split::kTest));
  EXPECT_THAT(train.examples->x, ElementsAre(1, 2));
  EXPECT_THAT(test.examples->x, ElementsAre(7));
}

TEST_F(DataTest, GivesEachClientItsFileInNameOrder) {
  WriteTensors("b.safetensors", 2, 4);
  WriteTensors("a.safetensors", 1, 3);
  WriteTensors("test.safetensors", 9, 5);
  DataSpec spec = Spec("safetensors", "");
  spec.partition.kind = "by_file";
  DataCache cache;
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset first, cache.ShardOf(spec, 0, 2));
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset second, cache.ShardOf(spec, 1, 2));
  EXPECT_EQ(first.all.get(), second.all.get()) << "identities share the examples";
  EXPECT_THAT(first.indices, ElementsAre(0, 1, 2));
  EXPECT_THAT(second.indices, ElementsAre(3, 4, 5, 6));
  EXPECT_EQ(first.all->x[0], 1);
  EXPECT_EQ(first.all->x[2 * 3], 2);
  TRIB_ASSERT_OK_AND_ASSIGN(const Dataset test, cache.TestSet(spec));
  EXPECT_EQ(test.count(), 5U);
  EXPECT_EQ(test.all->x[0], 9);
  EXPECT_THAT(cache.ShardOf(spec, 0, 3), StatusIs(StatusCode::kInvalidArgument, HasSubstr("2 files for 3 clients")));
  EXPECT_THAT(cache.ShardOf(spec, 2, 2), StatusIs(StatusCode::kInvalidArgument, HasSubstr("shard from 0 to 1")));
}

TEST_F(DataTest, RefusesFilesThatDoNotFitTogether) {
  WriteTensors("a.safetensors", 1, 3);
  TRIB_ASSERT_OK_AND_ASSIGN(const SafetensorsFile parsed, SafetensorsFile::Read(folder_ / "a.safetensors"));
  ASSERT_NE(parsed.view().Find("x"), nullptr);
  Write("b.csv", "1,2,3\n");
  Write("c.csv", "1,2\n");
  EXPECT_THAT(LoadData(Spec("csv", ""), Split::kTrain), StatusIs(StatusCode::kInvalidArgument, HasSubstr("c.csv")));
  Write("c.csv", "1,2,3.5\n");
  EXPECT_THAT(LoadData(Spec("csv", ""), Split::kTrain), StatusIs(StatusCode::kInvalidArgument, HasSubstr("regression targets")));
}

TEST_F(DataTest, NamesWhatIsMissing) {
  EXPECT_THAT(LoadData(Spec("fashoin-mnist", ""), Split::kTrain), StatusIs(StatusCode::kNotFound, HasSubstr("did you mean 'fashion-mnist'")));
  EXPECT_THAT(LoadData(Spec("csv", "none.csv"), Split::kTrain), StatusIs(StatusCode::kNotFound, HasSubstr("none.csv")));
  EXPECT_THAT(LoadData(Spec("csv", ""), Split::kTrain), StatusIs(StatusCode::kNotFound, HasSubstr("has no .csv files")));
  EXPECT_THAT(LoadData(Spec("idx", ""), Split::kTrain), StatusIs(StatusCode::kNotFound, HasSubstr("train-images-idx3-ubyte")));
  Write("bad.safetensors", "not a file of tensors");
  EXPECT_FALSE(LoadData(Spec("safetensors", "bad.safetensors"), Split::kTrain).ok());
}

TEST_F(DataTest, ReadsIdxFoldersIntoTheRangeOfMinusOneToOne) {
  for (const std::string prefix : {"train", "t10k"}) {
    Write(prefix + "-images-idx3-ubyte", std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x01\0\0\0\x02", 16) + std::string("\x00\xff\xff\x00", 4));
    Write(prefix + "-labels-idx1-ubyte", std::string("\0\0\x08\x01\0\0\0\x02", 8) + std::string("\x03\x01", 2));
  }
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData data, LoadData(Spec("idx", ""), Split::kTrain));
  EXPECT_THAT(data.examples->x, ::testing::Pointwise(::testing::FloatEq(), std::vector<float>{-1, 1, 1, -1}));
  EXPECT_THAT(data.examples->example_shape, ElementsAre(1, 1, 2));
  EXPECT_THAT(data.examples->labels, ElementsAre(3, 1));
  Write("train-labels-idx1-ubyte", std::string("\0\0\x08\x01\0\0\0\x01\x03", 9));
  EXPECT_THAT(LoadData(Spec("idx", ""), Split::kTrain), StatusIs(StatusCode::kInvalidArgument, HasSubstr("2 images but 1 labels")));
}

TEST(FashionMnistTest, IsNormalisedAndComplete) {
  DataSpec spec;
  spec.source = "fashion-mnist";
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData data, LoadData(spec, Split::kTrain));
  EXPECT_EQ(data.examples->count(), 60'000U);
  EXPECT_EQ(data.examples->classes, 10);
  EXPECT_THAT(data.examples->example_shape, ElementsAre(1, 28, 28));
  double sum = 0;
  double squares = 0;
  for (float value : data.examples->x) {
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  const auto count = static_cast<double>(data.examples->x.size());
  EXPECT_NEAR(sum / count, 0, 1e-3);
  EXPECT_NEAR(squares / count, 1, 2e-3);
  TRIB_ASSERT_OK_AND_ASSIGN(const LoadedData test, LoadData(spec, Split::kTest));
  EXPECT_EQ(test.examples->count(), 10'000U);
}

}  // namespace
}  // namespace tributary::client
