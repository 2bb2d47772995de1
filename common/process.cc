#include "common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>

#include "common/check.h"
#include "common/clock.h"

extern char** environ;

namespace tributary {
namespace {

// posix_spawn's two C objects, destroyed on every way out.
struct Actions {
  posix_spawn_file_actions_t value;
  Actions() { TRIB_CHECK(posix_spawn_file_actions_init(&value) == 0); }
  ~Actions() { posix_spawn_file_actions_destroy(&value); }
  Actions(const Actions&) = delete;
  Actions& operator=(const Actions&) = delete;
};
struct Attributes {
  posix_spawnattr_t value;
  Attributes() { TRIB_CHECK(posix_spawnattr_init(&value) == 0); }
  ~Attributes() { posix_spawnattr_destroy(&value); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
};

std::vector<std::string> MergedEnvironment(const std::vector<std::pair<std::string, std::string>>& changes) {
  std::map<std::string, std::string> merged;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) merged[text.substr(0, equals)] = text.substr(equals + 1);
  }
  for (const auto& change : changes) merged[change.first] = change.second;
  std::vector<std::string> lines;
  lines.reserve(merged.size());
  for (const auto& entry : merged) lines.push_back(entry.first + "=" + entry.second);
  return lines;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  pointers.reserve(texts.size() + 1);
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

void SetAttributes(Attributes& attributes, bool own_group) {
  // A child starts with no signal blocked and none ignored, whatever this program does with its own.
  sigset_t none, standard;
  sigemptyset(&none);
  sigemptyset(&standard);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGCHLD, SIGUSR1, SIGUSR2}) sigaddset(&standard, signal);
  posix_spawnattr_setsigmask(&attributes.value, &none);
  posix_spawnattr_setsigdefault(&attributes.value, &standard);
  posix_spawnattr_setpgroup(&attributes.value, 0);
  const int group = own_group ? POSIX_SPAWN_SETPGROUP : 0;
  posix_spawnattr_setflags(&attributes.value, static_cast<short>(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | group));
}

}  // namespace

absl::StatusOr<ChildProcess> ChildProcess::Spawn(const SpawnOptions& options) {
  const std::string program = options.program.string();
  Actions actions;
  const auto open_for = [&actions](int fd, const std::filesystem::path& path) {
    return path.empty() ? 0
                        : posix_spawn_file_actions_addopen(&actions.value, fd, path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  };
  if (const int error = open_for(STDOUT_FILENO, options.stdout_file)) return ErrnoStatus(error, program + ": stdout");
  if (const int error = open_for(STDERR_FILENO, options.stderr_file)) return ErrnoStatus(error, program + ": stderr");

  // {parent, child} pairs may collide ({5→6, 6→5}, or n→n where dup2 would keep CLOEXEC set). So every source is first
  // duplicated, in this process, to a close-on-exec number above all targets; from there dup2 can overwrite nothing that is
  // still needed, and it clears CLOEXEC on the target because the numbers differ.
  int above = STDERR_FILENO;
  for (const auto& mapping : options.fds) above = std::max({above, mapping.first, mapping.second});
  std::vector<UniqueFd> copies;
  copies.reserve(options.fds.size());
  for (const auto& mapping : options.fds) {
    if (mapping.second < 0) return InvalidArgument("{}: file descriptor {} in the child", program, mapping.second);
    UniqueFd copy(::fcntl(mapping.first, F_DUPFD_CLOEXEC, above + 1));
    if (!copy.valid()) return ErrnoStatus(errno, fmt::format("{}: duplicating file descriptor {}", program, mapping.first));
    if (const int error = posix_spawn_file_actions_adddup2(&actions.value, copy.get(), mapping.second)) {
      return ErrnoStatus(error, fmt::format("{}: file descriptor {}", program, mapping.second));
    }
    copies.push_back(std::move(copy));
  }

  // Whatever else is open here, without CLOEXEC by a library's oversight or by this program's own parent, ends at the child.
  for (int fd = STDERR_FILENO + 1; fd <= above; ++fd) {
    const bool wanted = std::any_of(options.fds.begin(), options.fds.end(), [fd](const auto& mapping) { return mapping.second == fd; });
    if (!wanted) posix_spawn_file_actions_addclose(&actions.value, fd);
  }
  posix_spawn_file_actions_addclosefrom_np(&actions.value, above + 1);

  Attributes attributes;
  SetAttributes(attributes, options.own_group);
  std::vector<std::string> arguments = {program};
  arguments.insert(arguments.end(), options.args.begin(), options.args.end());
  std::vector<std::string> environment = MergedEnvironment(options.env);
  std::vector<char*> argv = Pointers(arguments);
  std::vector<char*> envp = Pointers(environment);
  pid_t pid = -1;
  if (const int error = posix_spawn(&pid, program.c_str(), &actions.value, &attributes.value, argv.data(), envp.data())) {
    return ErrnoStatus(error, program + ": starting it");
  }
  // The child is ours and not reaped, so its pid cannot be another process's. The kernel sets CLOEXEC on a pidfd.
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const int pidfd_error = errno;
  ChildProcess child(pid, std::move(pidfd));
  if (!child.pidfd_.valid()) return ErrnoStatus(pidfd_error, program + ": pidfd_open");  // ~ChildProcess ends it
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      pidfd_(std::move(other.pidfd_)),
      reaped_(other.reaped_),
      wait_status_(other.wait_status_) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  std::swap(reaped_, other.reaped_);
  std::swap(wait_status_, other.wait_status_);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0 || reaped_) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, &wait_status_, 0) < 0 && errno == EINTR) {
  }
}

void ChildProcess::Signal(int signal) const {
  if (pid_ > 0 && !reaped_) ::kill(pid_, signal);
}

bool ChildProcess::Running() {
  if (pid_ < 0 || reaped_) return false;
  const pid_t got = ::waitpid(pid_, &wait_status_, WNOHANG);
  if (got == pid_) reaped_ = true;
  return !reaped_;
}

absl::StatusOr<int> ChildProcess::Wait(absl::Duration timeout) {
  if (pid_ < 0) return FailedPrecondition("waiting for a child process that was moved away");
  const BootClock clock;
  const absl::Time end = clock.Now() + timeout;
  while (Running()) {
    const absl::Duration left = end - clock.Now();
    if (left <= absl::ZeroDuration()) return DeadlineExceeded("process {} still runs after {} s", pid_, absl::ToDoubleSeconds(timeout));
    // Bounded first (an infinite timeout has no milliseconds), then rounded up.
    const auto left_ms = static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Minutes(1))) + 1);
    pollfd entry{pidfd_.get(), POLLIN, 0};
    ::poll(&entry, 1, left_ms);
  }
  return wait_status_;
}

int ChildProcess::Stop(absl::Duration grace) {
  Signal(SIGTERM);
  if (const auto status = Wait(grace); status.ok()) return *status;
  Signal(SIGKILL);
  return Wait(absl::InfiniteDuration()).value_or(wait_status_);
}

void DieWithParent(pid_t expected_parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have ended before prctl took effect: then this process already has another one.
  if (::getppid() != expected_parent) ::_exit(1);
}

}  // namespace tributary
