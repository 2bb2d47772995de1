// Follows one job until it ends: one rewritten line on a terminal, one line per committed version elsewhere, on stderr.
// Honours NO_COLOR and TERM=dumb. Threads: single-threaded.
#pragma once

#include <functional>
#include <string>

#include "cli/client.h"
#include "common/status.h"
#include "tributary/v1/admin.pb.h"

namespace tributary::cli {

class ProgressPrinter {
 public:
  ProgressPrinter();
  void Show(const v1::Job& job);
  // Ends the rewritten line, so that what follows starts on its own.
  void End();

 private:
  bool terminal_ = false;
  size_t shown_width_ = 0;
  uint64_t last_version_ = UINT64_MAX;
  std::string last_waiting_;
};

// Watches `job` until it ends or `stop()` is true (asked a few times a second), calling `seen` for every state that comes. Reconnects
// for up to `patience_s` seconds when the server goes away. Returns the last state seen.
absl::StatusOr<v1::Job> WatchUntilEnd(Client& client, const std::string& job, const std::function<void(const v1::Job&)>& seen,
                                      const std::function<bool()>& stop, int patience_s = 30);

// SIGINT, SIGTERM and SIGHUP set a flag from now on instead of ending the process; Interrupts() is how often they came.
void CatchInterrupts();
int Interrupts();

}  // namespace tributary::cli
