#include "cli/app.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <set>

#include "common/file.h"
#include "tests/support/status_matchers.h"

namespace tributary::cli {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

void Walk(const CLI::App& app, const std::string& path, const std::function<void(const CLI::App&, const std::string&)>& visit) {
  visit(app, path);
  for (const CLI::App* sub : app.get_subcommands({})) Walk(*sub, path + " " + sub->get_name(), visit);
}

TEST(AppTest, EveryCommandHasADescriptionAnExampleAndDescribedOptions) {
  Context context;
  const auto app = MakeApp(context);
  int commands = 0;
  Walk(*app, "tributary", [&](const CLI::App& command, const std::string& path) {
    ++commands;
    EXPECT_FALSE(command.get_description().empty()) << path;
    // The example is of this command, not of its neighbour.
    EXPECT_THAT(command.help(), HasSubstr("Example")) << path;
    EXPECT_THAT(command.get_footer(), HasSubstr(path)) << path;
    for (const CLI::Option* option : command.get_options()) {
      EXPECT_FALSE(option->get_description().empty()) << path << " " << option->get_name();
    }
  });
  EXPECT_GE(commands, 20);
}

TEST(AppTest, HasTheCommandsOfTheContract) {
  Context context;
  const auto app = MakeApp(context);
  std::set<std::string> paths;
  Walk(*app, "", [&](const CLI::App&, const std::string& path) { paths.insert(path); });
  for (const char* path : {" run", " submit", " jobs ls", " jobs show", " jobs cancel", " jobs resume", " jobs watch", " clients ls",
                           " clients show", " nodes ls", " nodes show", " nodes calibrate", " state ls", " state get", " state export", " state verify",
                           " state diff", " aggregate", " strategies", " models", " routers", " datasets", " codecs", " doctor", " completion"}) {
    EXPECT_EQ(paths.count(path), 1u) << path;
  }
}

TEST(AppTest, EveryExampleParses) {
  Context context;
  const auto reference = MakeApp(context);
  Walk(*reference, "tributary", [&](const CLI::App& command, const std::string& path) {
    const std::string footer = command.get_footer();
    size_t at = footer.find("tributary ");
    ASSERT_NE(at, std::string::npos) << path;
    std::string line = footer.substr(at, footer.find('\n', at) - at);
    if (!line.empty() && line.back() == ')') line.pop_back();  // source <(…)
    // A line that ends in a backslash goes on below.
    while (line.back() == '\\') {
      line.pop_back();
      const size_t next = footer.find('\n', at) + 1;
      at = next;
      line += footer.substr(at, footer.find('\n', at) - at);
    }
    Context own;
    const auto app = MakeApp(own);
    EXPECT_NO_THROW(app->parse(line.substr(sizeof("tributary")), false)) << line;
    EXPECT_TRUE(own.action) << line;
  });
}

TEST(AppTest, GlobalFlagsMayFollowTheCommand) {
  Context context;
  const auto app = MakeApp(context);
  app->parse("jobs show x --json --server h:1", false);
  EXPECT_TRUE(context.json);
  EXPECT_EQ(context.server, "h:1");
}

TEST(AppTest, WrongUsageThrowsInsteadOfRunning) {
  for (const std::string line : {"", "jobs", "jobs show", "run", "run j.yaml --clients 0", "run j.yaml --clients x", "sumbit j.yaml",
                                 "submit j.yaml --wacth", "completion tcsh", "doctor extra"}) {
    Context context;
    const auto app = MakeApp(context);
    EXPECT_THROW(app->parse(line, false), CLI::ParseError) << line;
  }
}

TEST(UsageHintTest, NamesTheNearestCommandOrFlag) {
  Context context;
  const auto app = MakeApp(context);
  EXPECT_EQ(UsageHint(*app, {"sumbit", "job.yaml"}), "did you mean 'submit'?");
  EXPECT_EQ(UsageHint(*app, {"--server", "h:1", "jobs", "shwo"}), "did you mean 'show'?");
  EXPECT_EQ(UsageHint(*app, {"submit", "j.yaml", "--wacth"}), "did you mean '--watch'?");
  EXPECT_EQ(UsageHint(*app, {"jobs", "ls", "--jsno"}), "did you mean '--json'?");
  EXPECT_EQ(UsageHint(*app, {"jobs", "show"}), "see 'tributary jobs show --help'");
  EXPECT_EQ(UsageHint(*app, {"xyzzy"}), "see 'tributary --help'");
  EXPECT_EQ(UsageHint(*app, {}), "see 'tributary --help'");
}

class ResolveServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "trib-cli-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    ::setenv("XDG_CONFIG_HOME", pattern.c_str(), 1);
    ::unsetenv("TRIBUTARY_SERVER");
  }
  void TearDown() override {
    std::filesystem::remove_all(dir_);
    ::unsetenv("TRIBUTARY_SERVER");
  }
  void WriteConfig(const std::string& text) {
    ASSERT_THAT(MakeDirectories(dir_ / "tributary"), IsOk());
    ASSERT_THAT(WriteFileAtomically(dir_ / "tributary" / "config.yaml", text), IsOk());
  }
  std::filesystem::path dir_;
};

TEST_F(ResolveServerTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  Context context;
  ASSERT_THAT(ResolveServer(context), IsOk());
  EXPECT_EQ(context.server, "127.0.0.1:7070");
  WriteConfig("server: file:1\n");
  context = Context();
  ASSERT_THAT(ResolveServer(context), IsOk());
  EXPECT_EQ(context.server, "file:1");
  ::setenv("TRIBUTARY_SERVER", "environment:2", 1);
  context = Context();
  ASSERT_THAT(ResolveServer(context), IsOk());
  EXPECT_EQ(context.server, "environment:2");
  context.server = "flag:3";
  ASSERT_THAT(ResolveServer(context), IsOk());
  EXPECT_EQ(context.server, "flag:3");
}

TEST_F(ResolveServerTest, NamesTheOriginOfABadAddress) {
  for (const std::string bad : {"host", "host:", ":7070", "host:0", "host:65536", "host:http"}) {
    Context context;
    context.server = bad;
    EXPECT_THAT(ResolveServer(context), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--server"))) << bad;
  }
  WriteConfig("sever: h:1\n");
  Context context;
  EXPECT_THAT(ResolveServer(context), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("did you mean 'server'?")));
}

TEST_F(ResolveServerTest, AcceptsNamesIpv6AndUnixSockets) {
  for (const std::string good : {"host.example:7070", "[::1]:7070", "unix:/run/tributary/sock"}) {
    Context context;
    context.server = good;
    EXPECT_THAT(ResolveServer(context), IsOk()) << good;
  }
}

}  // namespace
}  // namespace tributary::cli
