// Child processes by posix_spawn (never a bare fork: a forked child would inherit writable shared mappings).
// A child dies with its parent (PR_SET_PDEATHSIG is set by the child's own main, see DieWithParent) and is watched by pidfd.
// Thread-compatible. Errors: errno's, naming the program.
#pragma once

#include <absl/time/time.h>
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary {

struct SpawnOptions {
  std::filesystem::path program;
  std::vector<std::string> args;                       // without argv[0]
  std::vector<std::pair<std::string, std::string>> env;  // added to or replacing the parent's
  std::vector<std::pair<int, int>> fds;                // {parent's fd, number in the child}; everything else above 2 is closed
  std::filesystem::path stdout_file;                   // empty: inherited
  std::filesystem::path stderr_file;                   // empty: inherited
  bool own_group = false;                              // true: a terminal's Ctrl-C reaches the parent only, which then stops the child
};

class ChildProcess {
 public:
  static absl::StatusOr<ChildProcess> Spawn(const SpawnOptions& options);
  ChildProcess(ChildProcess&&) noexcept;
  ChildProcess& operator=(ChildProcess&&) noexcept;
  ~ChildProcess();  // SIGKILLs and reaps a child that is still running

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }  // readable when the child has ended
  void Signal(int signal) const;
  bool Running();
  // Waits at most `timeout`; the wait status (see waitpid) or DEADLINE_EXCEEDED.
  absl::StatusOr<int> Wait(absl::Duration timeout);
  // SIGTERM, up to `grace`, then SIGKILL. Returns the wait status.
  int Stop(absl::Duration grace);

 private:
  ChildProcess(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  bool reaped_ = false;
  int wait_status_ = 0;
};

// For a child's main: ask the kernel for SIGKILL when the parent ends; exits at once if it already has.
void DieWithParent(pid_t expected_parent);

}  // namespace tributary
