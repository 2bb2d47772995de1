#include "client/daemon/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

class ClientFlagsTest : public ::testing::Test {
 protected:
  void SetUp() override { file_ = std::filesystem::temp_directory_path() / ("trib-flags-" + std::to_string(::getpid()) + ".yaml"); }
  void TearDown() override { std::filesystem::remove(file_); }
  // Parses as main does; Options() of the result.
  absl::StatusOr<ClientOptions> Parse(std::vector<std::string> args) {
    args.insert(args.begin(), "client");
    std::vector<const char*> argv;
    for (const std::string& arg : args) argv.push_back(arg.c_str());
    const int argc = static_cast<int>(argv.size());
    CLI::App app;
    ClientFlags flags;
    TRIB_RETURN_IF_ERROR(flags.ReadConfigFile(argc, argv.data()));
    flags.AddTo(app);
    app.parse(argc, argv.data());
    described_ = flags.Describe(app);
    return flags.Options();
  }
  std::filesystem::path file_;
  std::string described_;
};

TEST_F(ClientFlagsTest, DefaultsAreValid) {
  TRIB_ASSERT_OK_AND_ASSIGN(const ClientOptions options, Parse({"--name", "site"}));
  EXPECT_EQ(options.server, "127.0.0.1:7070");
  EXPECT_TRUE(options.trains);
  EXPECT_FALSE(options.evaluates);
  EXPECT_EQ(options.outbox_limit_bytes, uint64_t{4} << 30);
}

TEST_F(ClientFlagsTest, FlagBeatsEnvironmentBeatsFile) {
  std::ofstream(file_) << "server: file:1\nname: from-file\nidentities: 2\n";
  ::setenv("TRIBUTARY_SERVER", "environment:1", 1);
  ::setenv("TRIBUTARY_NAME", "from-environment", 1);
  const auto options = Parse({"--config", file_.string(), "--server", "flag:1"});
  ::unsetenv("TRIBUTARY_SERVER");
  ::unsetenv("TRIBUTARY_NAME");
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->server, "flag:1");
  EXPECT_EQ(options->name, "from-environment");
  EXPECT_EQ(options->identities, 2);
  EXPECT_THAT(described_, HasSubstr("identities: 2  # file"));
}

TEST_F(ClientFlagsTest, UnknownKeyOfTheFileNamesTheNearest) {
  std::ofstream(file_) << "identitys: 2\n";
  EXPECT_THAT(Parse({"--config", file_.string()}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("identities")));
}

TEST_F(ClientFlagsTest, EvaluatorDoesNotTrain) {
  TRIB_ASSERT_OK_AND_ASSIGN(const ClientOptions options, Parse({"--name", "e", "--evaluator"}));
  EXPECT_FALSE(options.trains);
  EXPECT_TRUE(options.evaluates);
}

TEST_F(ClientFlagsTest, ValuesOutOfRangeAreNamed) {
  EXPECT_THAT(Parse({"--identities", "0"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--identities")));
  EXPECT_THAT(Parse({"--role", "boss"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'boss'")));
  EXPECT_THAT(Parse({"--device", "tpu"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--device")));
  EXPECT_THAT(Parse({"--name", "-x y"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--name")));
  EXPECT_THAT(Parse({"--shards", "2", "--first-shard", "2"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--first-shard")));
}

}  // namespace
}  // namespace tributary::client
