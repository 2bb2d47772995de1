#include "client/data/idx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>

#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

constexpr size_t kLimit = 1 << 20;

std::string Header(uint8_t type, const std::vector<uint32_t>& extents) {
  std::string bytes{0, 0, static_cast<char>(type), static_cast<char>(extents.size())};
  for (uint32_t extent : extents) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(extent >> shift & 0xff);
  }
  return bytes;
}

std::string Gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST(IdxTest, ReadsBytesPlainAndCompressed) {
  const std::string plain = Header(8, {2, 3}) + std::string("\x00\x01\x02\x7f\x80\xff", 6);
  for (const std::string& bytes : {plain, Gzip(plain)}) {
    TRIB_ASSERT_OK_AND_ASSIGN(const IdxFile file, ParseIdx(bytes, kLimit));
    EXPECT_THAT(file.header.extents, ElementsAre(2, 3));
    TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<float> values, IdxValues(file));
    EXPECT_THAT(values, ElementsAre(0, 1, 2, 127, 128, 255));
  }
}

TEST(IdxTest, ReadsBigEndianFloats) {
  TRIB_ASSERT_OK_AND_ASSIGN(const IdxFile file, ParseIdx(Header(0x0d, {2}) + std::string("\x3f\x80\x00\x00\xc0\x20\x00\x00", 8), kLimit));
  TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<float> values, IdxValues(file));
  EXPECT_THAT(values, ElementsAre(1.0F, -2.5F));
  TRIB_ASSERT_OK_AND_ASSIGN(const IdxFile nan, ParseIdx(Header(0x0d, {1}) + std::string("\x7f\xc0\x00\x00", 4), kLimit));
  EXPECT_THAT(IdxValues(nan), StatusIs(StatusCode::kInvalidArgument, HasSubstr("not finite")));
}

TEST(IdxTest, ReadsLabelsOfOneDimensionOnly) {
  TRIB_ASSERT_OK_AND_ASSIGN(const IdxFile file, ParseIdx(Header(8, {3}) + std::string("\x09\x00\xff", 3), kLimit));
  TRIB_ASSERT_OK_AND_ASSIGN(const std::vector<int64_t> labels, IdxLabels(file));
  EXPECT_THAT(labels, ElementsAre(9, 0, 255));
  TRIB_ASSERT_OK_AND_ASSIGN(const IdxFile matrix, ParseIdx(Header(8, {1, 1}) + "x", kLimit));
  EXPECT_THAT(IdxLabels(matrix), StatusIs(StatusCode::kInvalidArgument, HasSubstr("1 dimension")));
}

struct BadIdx {
  const char* name;
  std::string bytes;
  StatusCode code;
  const char* message;
};
class HostileIdxTest : public ::testing::TestWithParam<BadIdx> {};

TEST_P(HostileIdxTest, IsRefusedByName) {
  EXPECT_THAT(ParseIdx(GetParam().bytes, kLimit), StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

const BadIdx kBadIdxs[] = {
    {"Empty", "", StatusCode::kInvalidArgument, "at least 4 bytes"},
    {"Magic", std::string("\x01\x00\x08\x01\x00\x00\x00\x01z", 9), StatusCode::kInvalidArgument, "two zero bytes"},
    {"Type", Header(0x0e, {1}) + std::string(8, 0), StatusCode::kInvalidArgument, "0x0e"},
    {"NoDimensions", Header(8, {}), StatusCode::kInvalidArgument, "1 to 4 dimensions, got 0"},
    {"ManyDimensions", Header(8, {1, 1, 1, 1, 1}) + "x", StatusCode::kInvalidArgument, "got 5"},
    {"ShortHeader", Header(8, {7, 7}).substr(0, 9), StatusCode::kInvalidArgument, "12 bytes of header"},
    {"ZeroExtent", Header(8, {3, 0}), StatusCode::kInvalidArgument, "dimension 1 has extent 0"},
    {"Overflow", Header(8, {0xffffffff, 0xffffffff, 0xffffffff}), StatusCode::kResourceExhausted, "limit"},
    {"ProductIsZeroModulo64Bits", Header(8, {1U << 31, 1U << 31, 4}), StatusCode::kResourceExhausted, "limit"},
    {"OverLimit", Header(0x0d, {(kLimit / 4) + 1}), StatusCode::kResourceExhausted, "limit"},
    {"TooFewBytes", Header(8, {10}) + "123456789", StatusCode::kInvalidArgument, "promises 10 bytes of elements, the file has 9"},
    {"TooManyBytes", Header(8, {2}) + "123", StatusCode::kInvalidArgument, "promises 2 bytes of elements, the file has 3"},
    {"GzipTooMany", Gzip(Header(8, {2}) + "1234567"), StatusCode::kInvalidArgument, "promises 2 bytes"},
    {"GzipBomb", Gzip(Header(8, {2}) + std::string(10'000'000, 'a')), StatusCode::kInvalidArgument, "at least 3"},
    {"GzipTooFew", Gzip(Header(8, {9}) + "12"), StatusCode::kInvalidArgument, "the file has 2"},
    {"GzipOfNothing", Gzip(""), StatusCode::kInvalidArgument, "at least 4 bytes"},
    {"GzipHeaderOnly", "\x1f\x8b", StatusCode::kInvalidArgument, "gzip"},
    {"GzipGarbage", std::string("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage!", 18), StatusCode::kInvalidArgument, "gzip"},
};
INSTANTIATE_TEST_SUITE_P(All, HostileIdxTest, ::testing::ValuesIn(kBadIdxs), [](const auto& info) { return std::string(info.param.name); });

TEST(IdxTest, RefusesEveryTruncationOfACompressedFile) {
  const std::string good = Gzip(Header(8, {300}) + std::string(300, 'q') );
  for (size_t size = 0; size < good.size(); ++size) EXPECT_FALSE(ParseIdx(good.substr(0, size), kLimit).ok()) << size;
}

}  // namespace
}  // namespace tributary::client
