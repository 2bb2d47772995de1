#include "client/data/csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::StatusIs;

TEST(CsvTest, TakesTheLastColumnAsLabelWithoutAHeader) {
  TRIB_ASSERT_OK_AND_ASSIGN(const Examples table, ParseCsv("1,2.5,0\n-3,4e1,2\n", "", "t.csv"));
  EXPECT_THAT(table.x, ElementsAre(1, 2.5F, -3, 40));
  EXPECT_THAT(table.labels, ElementsAre(0, 2));
  EXPECT_THAT(table.targets, IsEmpty());
  EXPECT_THAT(table.example_shape, ElementsAre(2));
}

TEST(CsvTest, FindsTheLabelByNameInAQuotedHeader) {
  TRIB_ASSERT_OK_AND_ASSIGN(const Examples table, ParseCsv("\"a, or \"\"b\"\"\",y,z\r\n1,\"7\",3\r\n\r\n4,8,6", "y", "t.csv"));
  EXPECT_THAT(table.x, ElementsAre(1, 3, 4, 6));
  EXPECT_THAT(table.labels, ElementsAre(7, 8));
}

TEST(CsvTest, ReadsFractionsAsRegressionTargets) {
  TRIB_ASSERT_OK_AND_ASSIGN(const Examples table, ParseCsv("1,3\n2,4.0\n", "", "t.csv"));
  EXPECT_THAT(table.labels, IsEmpty());
  EXPECT_THAT(table.targets, ElementsAre(3, 4));
  TRIB_ASSERT_OK_AND_ASSIGN(const Examples negative, ParseCsv("1,-3\n2,4\n", "", "t.csv"));
  EXPECT_THAT(negative.targets, ElementsAre(-3, 4));
}

TEST(CsvTest, SkipsAByteOrderMark) {
  TRIB_ASSERT_OK_AND_ASSIGN(const Examples table, ParseCsv("\xef\xbb\xbfx,y\n1,0\n", "y", "t.csv"));
  EXPECT_THAT(table.x, ElementsAre(1));
}

struct BadCsv {
  const char* name;
  const char* text;
  const char* label;
  const char* message;
};
class BadCsvTest : public ::testing::TestWithParam<BadCsv> {};

TEST_P(BadCsvTest, IsRefusedWithItsPlace) {
  EXPECT_THAT(ParseCsv(GetParam().text, GetParam().label, "t.csv"), StatusIs(StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

const BadCsv kBadCsvs[] = {
    {"Empty", "", "", "no rows"},
    {"HeaderOnly", "a,b\n", "", "a header but no rows"},
    {"OneColumn", "1\n2\n", "", "at least 2 columns"},
    {"Text", "x,y\n1,2\n3,four\n", "", "t.csv:3:2: expected a finite number, got 'four'"},
    {"EmptyField", "1,2,3\n4,,6\n", "", "t.csv:2:2: expected a finite number, got ''"},
    {"NotANumber", "x,y\nnan,2\n", "", "t.csv:2:1"},
    {"Infinite", "x,y\ninf,2\n", "", "t.csv:2:1"},
    {"TooLargeForFloat", "1,2\n1e300,2\n", "", "t.csv:2:1"},
    {"ShortRow", "1,2,3\n4,5\n", "", "t.csv:2:3: expected 3 fields"},
    {"LongRow", "1,2\n4,5,6\n", "", "t.csv:2:3: expected 2 fields"},
    {"UnknownLabel", "alpha,beta\n1,2\n", "alhpa", "did you mean 'alpha'"},
    {"LabelWithoutHeader", "1,2\n", "y", "no header row"},
    {"OpenQuote", "a,b\n1,\"2\n3,4\n", "", "t.csv:2:2: the quoted field does not end"},
    {"AfterQuote", "a,b\n1,\"2\"x\n", "", "t.csv:2:2: expected ','"},
    {"QuoteInside", "a,b\n1,2\"3\n", "", "t.csv:2:2: a quote in the middle"},
    {"LineCountsThroughQuotes", "\"a\nb\",c\n1,2\n1,x\n", "", "t.csv:4:2"},
};
INSTANTIATE_TEST_SUITE_P(All, BadCsvTest, ::testing::ValuesIn(kBadCsvs), [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tributary::client
