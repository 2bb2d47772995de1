#include "cli/command.h"

#include <gmock/gmock.h>

namespace tributary::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

TEST(ExitCodeTest, FollowsTheContract) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(Internal("x")), 1);
  EXPECT_EQ(ExitCodeOf(Aborted("x")), 1);
  EXPECT_EQ(ExitCodeOf(Cancelled("x")), 1);
  EXPECT_EQ(ExitCodeOf(DataLoss("x")), 1);
  EXPECT_EQ(ExitCodeOf(Unimplemented("x")), 1);
  EXPECT_EQ(ExitCodeOf(NotFound("x")), 3);
  EXPECT_EQ(ExitCodeOf(Unavailable("x")), 4);
  EXPECT_EQ(ExitCodeOf(DeadlineExceeded("x")), 4);
  for (const absl::Status& refused : {Unauthenticated("x"), PermissionDenied("x"), InvalidArgument("x"), FailedPrecondition("x"),
                                      AlreadyExists("x"), ResourceExhausted("x")}) {
    EXPECT_EQ(ExitCodeOf(refused), 5) << refused;
  }
}

TEST(ReportErrorTest, TextGoesToStderrWithAHint) {
  CaptureStdout();
  CaptureStderr();
  EXPECT_EQ(ReportError(Context(), NotFound("job 'x': none"), "tributary jobs ls"), kNotFound);
  EXPECT_EQ(GetCapturedStderr(), "error: job 'x': none\nhint: tributary jobs ls\n");
  EXPECT_EQ(GetCapturedStdout(), "");
}

TEST(ReportErrorTest, JsonIsOneDocumentOnStdout) {
  Context context;
  context.json = true;
  CaptureStdout();
  CaptureStderr();
  EXPECT_EQ(ReportError(context, InvalidArgument("bad \xff byte"), "fix it"), kRefused);
  const nlohmann::json document = nlohmann::json::parse(GetCapturedStdout());
  EXPECT_EQ(GetCapturedStderr(), "");
  EXPECT_EQ(document["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(document["error"]["message"], "bad \ufffd byte");
  EXPECT_EQ(document["error"]["hint"], "fix it");
}

TEST(ReportErrorTest, AnUnreachableServerAlwaysComesWithTheWayToStartOne) {
  CaptureStderr();
  EXPECT_EQ(ReportError(Context(), Unavailable("no aggregator answers at h:1")), kUnreachable);
  EXPECT_THAT(GetCapturedStderr(), HasSubstr("hint: start one with 'tributary-aggregator --store DIR'"));
}

TEST(PrintableTest, TakesEscapeSequencesOutAndLeavesTextAlone) {
  EXPECT_EQ(Printable("plain · é 漢"), "plain · é 漢");
  EXPECT_EQ(Printable("\x1b[31mred\x07\x7f"), "?[31mred??");
  EXPECT_EQ(Printable("csi \xC2\x9B" "31m"), "csi ?31m");
  EXPECT_EQ(Printable("a\nb\tc"), "a?b?c");
  EXPECT_EQ(Printable("a\nb\tc\r", true), "a\nb\tc?");
}

}  // namespace
}  // namespace tributary::cli
