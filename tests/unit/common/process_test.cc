#include "common/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <algorithm>

#include "common/file.h"
#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

struct Pipe {
  UniqueFd read, write;
  Pipe() {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) == 0) {
      read = UniqueFd(fds[0]);
      write = UniqueFd(fds[1]);
    }
  }
};

std::string ReadToEnd(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(fd, buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(n));
  return text;
}

SpawnOptions Shell(std::string script) {
  SpawnOptions options;
  options.program = "/bin/sh";
  options.args = {"-c", std::move(script)};
  return options;
}

TEST(ChildProcessTest, GivesTheExitStatus) {
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(Shell("exit 7")));
  TRIB_ASSERT_OK_AND_ASSIGN(const int status, child.Wait(absl::Seconds(20)));
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_FALSE(child.Running());
}

TEST(ChildProcessTest, NamesAProgramThatIsMissing) {
  SpawnOptions options;
  options.program = "/nonexistent/program";
  EXPECT_THAT(ChildProcess::Spawn(options), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/program")));
}

TEST(ChildProcessTest, StopEndsAWillingChildWithSigtermAndAnUnwillingOneWithSigkill) {
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess willing, ChildProcess::Spawn(Shell("exec sleep 100")));
  int status = willing.Stop(absl::Seconds(20));
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGTERM);

  Pipe ready;
  SpawnOptions options = Shell("trap '' TERM; echo ready >&3; exec 3>&-; while true; do sleep 0.05; done");
  options.fds = {{ready.write.get(), 3}};
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess unwilling, ChildProcess::Spawn(options));
  ready.write.Reset();
  EXPECT_EQ(ReadToEnd(ready.read.get()), "ready\n");
  status = unwilling.Stop(absl::Milliseconds(50));
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
}

TEST(ChildProcessTest, PidfdBecomesReadableAtTheEnd) {
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(Shell("exit 0")));
  pollfd entry{child.pidfd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
  EXPECT_FALSE(child.Running());
  EXPECT_NE(::fcntl(child.pidfd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(ChildProcessTest, WaitTellsWhenTimeIsOver) {
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(Shell("exec sleep 100")));
  EXPECT_THAT(child.Wait(absl::Milliseconds(20)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(child.Running());
}

TEST(ChildProcessTest, DestructorLeavesNoChild) {
  pid_t pid = 0;
  {
    TRIB_ASSERT_OK_AND_ASSIGN(const ChildProcess child, ChildProcess::Spawn(Shell("exec sleep 100")));
    pid = child.pid();
  }
  EXPECT_EQ(::kill(pid, 0), -1);
}

TEST(ChildProcessTest, MapsDescriptorsWhoseNumbersCollide) {
  Pipe a, b;
  // Crosswise: each one's number is the other's target, and c keeps its own.
  Pipe c;
  const int fa = a.write.get(), fb = b.write.get(), fc = c.write.get();
  SpawnOptions options;
  options.program = "/bin/bash";
  options.args = {"-c", fmt::format("echo to-a >&{}; echo to-b >&{}; echo to-c >&{}", fb, fa, fc)};
  options.fds = {{fa, fb}, {fb, fa}, {fc, fc}};
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(options));
  a.write.Reset();
  b.write.Reset();
  c.write.Reset();
  EXPECT_EQ(ReadToEnd(a.read.get()), "to-a\n");
  EXPECT_EQ(ReadToEnd(b.read.get()), "to-b\n");
  EXPECT_EQ(ReadToEnd(c.read.get()), "to-c\n");
  EXPECT_TRUE(child.Wait(absl::Seconds(20)).ok());
}

TEST(ChildProcessTest, TheChildSeesItsDescriptorsAndNoOthers) {
  Pipe out;
  const UniqueFd leaked(::open("/dev/null", O_RDONLY));  // without O_CLOEXEC
  const UniqueFd high(::fcntl(leaked.get(), F_DUPFD, 300));
  SpawnOptions options = Shell("ls /proc/self/fd >&9");
  options.fds = {{out.write.get(), 9}};
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(options));
  out.write.Reset();
  const std::string listed = ReadToEnd(out.read.get());
  EXPECT_TRUE(child.Wait(absl::Seconds(20)).ok());
  // 0, 1, 2, 9, and the one `ls` reads the folder with.
  EXPECT_EQ(std::count(listed.begin(), listed.end(), '\n'), 5) << listed;
}

TEST(ChildProcessTest, GetsAProcessGroupOfItsOwnWhenAsked) {
  for (const bool own : {false, true}) {
    SpawnOptions options = Shell("exec sleep 100");
    options.own_group = own;
    TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(options));
    EXPECT_EQ(::getpgid(child.pid()), own ? child.pid() : ::getpgrp());
  }
}

TEST(ChildProcessTest, RedirectsOutputAndSetsTheEnvironment) {
  std::string pattern = (std::filesystem::temp_directory_path() / "trib-process-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const std::filesystem::path dir = pattern;
  SpawnOptions options = Shell("echo \"$TRIB_A\"; echo \"$HOME\" >&2");
  options.env = {{"TRIB_A", "value with = and space"}, {"HOME", "/replaced"}};
  options.stdout_file = dir / "out";
  options.stderr_file = dir / "err";
  TRIB_ASSERT_OK_AND_ASSIGN(ChildProcess child, ChildProcess::Spawn(options));
  EXPECT_TRUE(child.Wait(absl::Seconds(20)).ok());
  EXPECT_EQ(*ReadFile(dir / "out"), "value with = and space\n");
  EXPECT_EQ(*ReadFile(dir / "err"), "/replaced\n");
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace tributary
