#include "common/safetensors.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <cstring>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using testing::IsOk;
using testing::StatusIs;

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

std::string File(const std::string& header, size_t data_bytes, uint64_t announced = UINT64_MAX) {
  if (announced == UINT64_MAX) announced = header.size();
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(announced >> (8 * i)));
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<char>(i));
  return file;
}

std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TensorLayout Layout() {
  return *TensorLayout::Create({{"w", {2, 3}, DType::kF32, TensorKind::kTrainable},
                                {"quote\"é", {}, DType::kF32, TensorKind::kTrainable},
                                {"none", {0}, DType::kF32, TensorKind::kTrainable},
                                {"mean", {2}, DType::kF32, TensorKind::kBuffer},
                                {"bias", {3}, DType::kF32, TensorKind::kServerOwned},
                                {"steps", {}, DType::kI64, TensorKind::kCounter}});
}

std::vector<std::byte> Flat(const TensorLayout& layout) {
  std::vector<std::byte> flat(layout.total_bytes());
  for (size_t i = 0; i < flat.size(); ++i) flat[i] = static_cast<std::byte>(i * 7 + 1);
  return flat;
}

TEST(SafetensorsTest, WrittenFilesReadBackWithKindsAndMetadata) {
  const TensorLayout layout = Layout();
  const std::vector<std::byte> flat = Flat(layout);
  TRIB_ASSERT_OK_AND_ASSIGN(const std::string file, SerializeSafetensors(layout, flat, {{"job", "a \"b\""}}));
  uint64_t header = 0;
  std::memcpy(&header, file.data(), 8);
  EXPECT_EQ(header % 8, 0u);
  TRIB_ASSERT_OK_AND_ASSIGN(const SafetensorsView view, ParseSafetensors(Bytes(file)));
  EXPECT_EQ(view.metadata.at("job"), "a \"b\"");
  EXPECT_EQ(view.metadata.at("kind:mean"), "buffer");
  EXPECT_EQ(view.metadata.at("kind:bias"), "server_owned");
  ASSERT_NE(view.Find("w"), nullptr);
  EXPECT_EQ(view.Find("w")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(view.Find("other"), nullptr);
  TRIB_ASSERT_OK_AND_ASSIGN(const FlatModel model, ToModel(view));
  EXPECT_EQ(model.layout, layout);
  EXPECT_EQ(model.bytes, flat);
}

TEST(SafetensorsTest, FilesOnDiskAndOfNoTensor) {
  std::string pattern = (std::filesystem::temp_directory_path() / "trib-st-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const std::filesystem::path dir = pattern;
  ASSERT_THAT(WriteSafetensors(dir / "m", Layout(), Flat(Layout())), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(SafetensorsFile file, SafetensorsFile::Read(dir / "m"));
  const SafetensorsFile moved = std::move(file);
  EXPECT_EQ(moved.view().Find("w")->bytes[0], std::byte{1});
  ASSERT_THAT(WriteSafetensors(dir / "empty", TensorLayout(), {}), IsOk());
  TRIB_ASSERT_OK_AND_ASSIGN(const SafetensorsFile empty, SafetensorsFile::Read(dir / "empty"));
  EXPECT_TRUE(empty.view().entries.empty());
  EXPECT_THAT(SafetensorsFile::Read(dir / "absent"), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_THAT(WriteFileAtomically(dir / "bad", std::string_view("x")), IsOk());
  EXPECT_THAT(SafetensorsFile::Read(dir / "bad"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("/bad")));
  std::filesystem::remove_all(dir);
}

TEST(SafetensorsTest, AcceptsEveryTypeAndAnyOrderOfTheHeader) {
  const std::string file = File("{\"b\":" + Entry("BF16", "[2]", "[3,7]") + ",\"__metadata__\":{\"k\":\"v\"},\"a\":" +
                                    Entry("F4", "[6]", "[0,3]") + ",\"e\":" + Entry("F64", "[0,9]", "[7,7]") + "}  ",
                                7);
  TRIB_ASSERT_OK_AND_ASSIGN(const SafetensorsView view, ParseSafetensors(Bytes(file)));
  ASSERT_EQ(view.entries.size(), 3u);
  EXPECT_EQ(view.entries[0].name, "a");
  EXPECT_EQ(view.entries[1].bytes[0], std::byte{3});
  EXPECT_THAT(view.metadata, ::testing::ElementsAre(Pair("k", "v")));
  EXPECT_THAT(ToModel(view), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a': expected type F32, F64 or I64, got F4")));
}

TEST(SafetensorsTest, TruncatedAnywhereIsRefused) {
  const std::string file = *SerializeSafetensors(Layout(), Flat(Layout()));
  for (size_t size = 0; size < file.size(); ++size) {
    const std::string cut = file.substr(0, size);
    EXPECT_THAT(ParseSafetensors(Bytes(cut)), StatusIs(absl::StatusCode::kInvalidArgument)) << size;
  }
  const std::string longer = file + "x";
  EXPECT_THAT(ParseSafetensors(Bytes(longer)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes of data")));
}

TEST(SafetensorsTest, RefusesHostileFiles) {
  const auto refused = [](const std::string& file, const std::string& why) {
    EXPECT_THAT(ParseSafetensors(Bytes(file)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)))
        << file.substr(8, 200);
  };
  const std::string a = "{\"a\":";
  refused(File("{}", 0, UINT64_MAX - 1), "header of at most");
  refused(File("{}", 0, 100'000'001), "header of at most");
  refused(File("{}", 0, 99'999'999), "is announced");
  refused(File("", 0), "begin with '{'");
  refused(File(" {}", 0), "begin with '{'");
  refused(File("[]", 0), "begin with '{'");
  refused(File("{", 0), "not valid JSON");
  refused(File("{}{}", 0), "not valid JSON");
  refused(File("{} x", 0), "not valid JSON");
  refused(File(std::string("{}\0", 3), 0), "not valid JSON");
  refused(File("{\"\xff\":1}", 0), "not valid JSON");
  refused(File("{}", 1), "1 bytes of data, of which the tensors name 0");
  refused(File(a + Entry("F32", "[1]", "[0,4]") + ",\"b\":" + Entry("F32", "[1]", "[3,7]") + "}", 7), "overlaps");
  refused(File(a + Entry("F32", "[1]", "[0,4]") + ",\"b\":" + Entry("F32", "[1]", "[0,4]") + "}", 4), "overlaps");
  refused(File(a + Entry("F32", "[1]", "[0,4]") + ",\"b\":" + Entry("F32", "[1]", "[5,9]") + "}", 9), "a hole");
  refused(File(a + Entry("F32", "[1]", "[4,8]") + "}", 8), "a hole");
  refused(File(a + Entry("F32", "[1]", "[0,8]") + "}", 4), "do not lie");
  refused(File(a + Entry("F32", "[0]", "[0,18446744073709551615]") + "}", 4), "do not lie");
  refused(File(a + Entry("F32", "[1]", "[4,0]") + "}", 4), "a hole");
  refused(File(a + Entry("F32", "[2]", "[0,4]") + "}", 4), "takes 8 bytes, data_offsets give 4");
  refused(File(a + Entry("F32", "[4294967296,4294967296]", "[0,4]") + "}", 4), "overflows");
  refused(File(a + Entry("F32", "[9223372036854775807,2,0]", "[0,0]") + "}", 0), "overflows");
  refused(File(a + Entry("F32", "[9223372036854775808]", "[0,0]") + "}", 0), "too large");
  refused(File(a + Entry("F32", "[99999999999999999999]", "[0,0]") + "}", 0), "whole numbers");
  refused(File(a + Entry("F32", "[-1]", "[0,4]") + "}", 4), "whole numbers");
  refused(File(a + Entry("F32", "[1.0]", "[0,4]") + "}", 4), "whole numbers");
  refused(File(a + Entry("F32", "[[1]]", "[0,4]") + "}", 4), "got an array");
  refused(File(a + Entry("F32", "{}", "[0,4]") + "}", 4), "got an object");
  refused(File(a + Entry("F32", "null", "[0,4]") + "}", 4), "got null");
  refused(File(a + Entry("F32", "[1]", "[0]") + "}", 4), "expected 2 numbers, got 1");
  refused(File(a + Entry("F32", "[1]", "[0,4,4]") + "}", 4), "got more");
  refused(File(a + Entry("F33", "[1]", "[0,4]") + "}", 4), "unknown type 'F33'");
  refused(File(a + Entry("F4", "[1]", "[0,1]") + "}", 1), "no whole number of bytes");
  refused(File(a + "1}", 0), "'a': expected an object");
  refused(File(a + R"({"dtype":"F32","shape":[1]}})", 4), "data_offsets is missing");
  refused(File(a + R"({"dtype":"F32","dtype":"F32"}})", 4), "key 'dtype' occurs twice");
  refused(File(a + R"({"dtype":"F32","more":1}})", 4), "got key 'more'");
  refused(File(a + R"({"dtype":7}})", 4), "dtype: expected a string");
  refused(File(a + Entry("F32", "[1]", "[0,4]") + ",\"a\":" + Entry("F32", "[1]", "[4,8]") + "}", 8), "'a': the name occurs twice");
  refused(File("{\"\":" + Entry("F32", "[1]", "[0,4]") + "}", 4), "empty");
  refused(File(R"({"__metadata__":{"k":1}})", 0), "expected a string");
  refused(File(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "occurs twice");
  refused(File(R"({"__metadata__":{},"__metadata__":{}})", 0), "occurs twice");
  refused(File(a + std::string(1'000'000, '['), 0), "got an array");
  refused(File(a + "{\"shape\":" + std::string(1'000'000, '['), 0), "got an array");
  std::string nested;
  for (int i = 0; i < 100'000; ++i) nested += "{\"a\":";
  refused(File(nested, 0), "expected dtype");
  std::string dims = "[1";
  for (int i = 0; i < 100; ++i) dims += ",1";
  refused(File(a + Entry("F32", dims + "]", "[0,4]") + "}", 4), "64 dimensions");
}

TEST(SafetensorsTest, LongNamesAreCutInMessages) {
  const std::string file = File("{\"" + std::string(1'000'000, 'n') + "\":1}", 0);
  EXPECT_LT(ParseSafetensors(Bytes(file)).status().message().size(), 300u);
}

TEST(SafetensorsTest, ToFlatDemandsExactlyTheLayout) {
  const TensorLayout layout = Layout();
  const auto view_of = [](const std::string& file) { return *ParseSafetensors(Bytes(file)); };
  const std::string same = *SerializeSafetensors(layout, Flat(layout));
  EXPECT_THAT(ToFlat(view_of(same), layout), IsOk());
  const TensorLayout fewer = *TensorLayout::Create({{"w", {2, 3}, DType::kF32, TensorKind::kTrainable}});
  EXPECT_THAT(ToFlat(view_of(same), fewer), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("has none of this name")));
  const std::string few = *SerializeSafetensors(fewer, std::vector<std::byte>(24));
  EXPECT_THAT(ToFlat(view_of(few), layout), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("missing")));
  const TensorLayout other_shape = *TensorLayout::Create({{"w", {3, 2}, DType::kF32, TensorKind::kTrainable}});
  EXPECT_THAT(ToFlat(view_of(few), other_shape),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected shape [3, 2], got [2, 3]")));
  const TensorLayout other_type = *TensorLayout::Create({{"w", {2, 3}, DType::kF64, TensorKind::kTrainable}});
  EXPECT_THAT(ToFlat(view_of(few), other_type), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected type F64, got F32")));
}

TEST(SafetensorsTest, ToModelRefusesWrongKindsAndMixedTypes) {
  const auto model_of = [](const std::string& file) { return ToModel(*ParseSafetensors(Bytes(file))); };
  EXPECT_THAT(model_of(File("{\"a\":" + Entry("F32", "[1]", "[0,4]") + ",\"b\":" + Entry("F64", "[1]", "[4,12]") + "}", 12)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected F32")));
  EXPECT_THAT(model_of(File("{\"__metadata__\":{\"kind:a\":\"buffer\"},\"a\":" + Entry("I64", "[1]", "[0,8]") + "}", 8)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'buffer'")));
  EXPECT_THAT(model_of(File("{\"__metadata__\":{\"kind:a\":\"soup\"},\"a\":" + Entry("F32", "[1]", "[0,4]") + "}", 4)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'soup'")));
}

TEST(SafetensorsTest, SerializeRefusesWhatCouldNotBeReadBack) {
  EXPECT_THAT(SerializeSafetensors(Layout(), {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 0")));
  for (const std::string name : {"__metadata__", "\xff"}) {
    const TensorLayout layout = *TensorLayout::Create({{name, {0}, DType::kF32, TensorKind::kTrainable}});
    EXPECT_THAT(SerializeSafetensors(layout, {}), StatusIs(absl::StatusCode::kInvalidArgument)) << name;
  }
  EXPECT_THAT(SerializeSafetensors(TensorLayout(), {}, {{"k", "\xff"}}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace tributary
