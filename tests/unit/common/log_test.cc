#include "common/log.h"

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(LogTest, JsonLinesParseWhateverTheMessageQuotes) {
  ::testing::internal::CaptureStderr();
  ASSERT_THAT(InitLogging("prog", LogFormat::kJson, "info"), IsOk());
  const std::string hostile = "quote \" slash \\ newline \n tab \t bell \x07 bad \xff\xc0 good é";
  TRIB_LOG(info, "{}", hostile);
  TRIB_LOG(debug, "not shown");
  TRIB_LOG_IF_ERROR(NotFound("lost"));
  const std::string output = ::testing::internal::GetCapturedStderr();
  std::vector<nlohmann::json> lines;
  for (size_t at = 0; at < output.size();) {
    const size_t end = output.find('\n', at);
    lines.push_back(nlohmann::json::parse(output.substr(at, end - at)));
    at = end + 1;
  }
  ASSERT_EQ(lines.size(), 2u) << output;
  EXPECT_EQ(lines[0]["msg"], "quote \" slash \\ newline \n tab \t bell \x07 bad \ufffd\ufffd good é");
  EXPECT_EQ(lines[0]["level"], "info");
  EXPECT_EQ(lines[0]["program"], "prog");
  EXPECT_THAT(lines[0]["ts"].get<std::string>(), ::testing::MatchesRegex("....-..-..T..:..:..\\.......Z"));
  EXPECT_EQ(lines[1]["level"], "warn");
  EXPECT_THAT(lines[1]["msg"].get<std::string>(), HasSubstr("lost"));
}

TEST(LogTest, TextGoesToStderrOnly) {
  ::testing::internal::CaptureStderr();
  ::testing::internal::CaptureStdout();
  ASSERT_THAT(InitLogging("prog", LogFormat::kText, "warn"), IsOk());
  TRIB_LOG(warn, "disk {} %", 95);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("prog warning disk 95 %\n"));
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
}

TEST(LogTest, RefusesUnknownLevelsAndFormats) {
  EXPECT_THAT(InitLogging("prog", LogFormat::kText, "loud"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'loud'")));
  EXPECT_THAT(ParseLogFormat("xml"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'xml'")));
  EXPECT_EQ(*ParseLogFormat("json"), LogFormat::kJson);
}

}  // namespace
}  // namespace tributary
