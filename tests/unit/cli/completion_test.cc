// The scripts that `tributary completion` prints, and in bash also what they complete.
#include <gmock/gmock.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "cli/app.h"
#include "common/ids.h"

namespace tributary::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

std::string Script(const std::string& shell) {
  Context context;
  const auto app = MakeApp(context);
  app->parse("completion " + shell, false);
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(context.action(), kDone);
  return ::testing::internal::GetCapturedStdout();
}

// What bash offers for `words`, of which the last is being typed, in a folder that has one file, "etcetera".
std::vector<std::string> BashOffers(const std::vector<std::string>& words) {
  // Of this call alone: other tests of this file run at the same time.
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / ("completion_" + RandomHex(8));
  const std::string path = (folder / "script.bash").string();
  std::filesystem::create_directories(folder / "here");
  std::ofstream(folder / "here" / "etcetera") << "x";
  std::ofstream file(path);
  file << Script("bash") << "\nCOMP_WORDS=(";
  for (const std::string& word : words) file << "'" << word << "' ";
  file << ")\nCOMP_CWORD=" << words.size() - 1 << "\ncd '" << (folder / "here").string() << "'\n_tributary\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n";
  file.close();
  std::vector<std::string> offers;
  FILE* pipe = ::popen(("bash " + path + " 2>&1").c_str(), "r");
  char line[1024];
  while (pipe != nullptr && std::fgets(line, sizeof(line), pipe) != nullptr) {
    std::string text = line;
    text.pop_back();
    if (!text.empty()) offers.push_back(text);
  }
  if (pipe != nullptr) ::pclose(pipe);
  std::filesystem::remove_all(folder);
  return offers;
}

TEST(CompletionTest, BashOffersCommandsSubcommandsAndFlags) {
  EXPECT_THAT(BashOffers({"tributary", ""}), IsSupersetOf({"run", "submit", "jobs", "doctor", "--json"}));
  EXPECT_THAT(BashOffers({"tributary", "sub"}), ElementsAre("submit"));
  EXPECT_THAT(BashOffers({"tributary", "--json", "jobs", "wa"}), ElementsAre("watch"));
  EXPECT_THAT(BashOffers({"tributary", "submit", "--w"}), ElementsAre("--watch"));
  EXPECT_THAT(BashOffers({"tributary", "jobs", "cancel", "--r"}), ElementsAre("--reason"));
}

TEST(CompletionTest, BashOffersFilesWhereACommandTakesOne) {
  EXPECT_THAT(BashOffers({"tributary", "submit", "et"}), ElementsAre("etcetera"));
  EXPECT_THAT(BashOffers({"tributary", "submit", "x"}), ::testing::IsEmpty());
}

TEST(CompletionTest, ZshAndFishScriptsNameEveryCommand) {
  Context context;
  const auto app = MakeApp(context);
  const std::string zsh = Script("zsh"), fish = Script("fish");
  for (const CLI::App* command : app->get_subcommands({})) {
    EXPECT_THAT(zsh, HasSubstr(command->get_name()));
    EXPECT_THAT(fish, HasSubstr("-a " + command->get_name() + " "));
  }
}

}  // namespace
}  // namespace tributary::cli
