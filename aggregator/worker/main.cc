// tributary-worker --channel-fd N --parent PID: started by the aggregator daemon only, never by hand.
// Exit codes: 0 told to stop or the daemon is gone; 1 it cannot go on; 2 wrong arguments.
#include <absl/strings/numbers.h>
#include <signal.h>

#include <cstdio>
#include <string>

#include "aggregator/worker/worker_runtime.h"
#include "common/log.h"
#include "common/process.h"

int main(int argc, char** argv) {
  int channel_fd = -1;
  int parent = -1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const std::string value = argv[i + 1];
    int* target = flag == "--channel-fd" ? &channel_fd : flag == "--parent" ? &parent : nullptr;
    if (target == nullptr || !absl::SimpleAtoi(value, target)) channel_fd = -1;
  }
  if (argc != 5 || channel_fd < 0 || parent <= 0) {
    std::fprintf(stderr, "tributary-worker is started by tributary-aggregator: --channel-fd N --parent PID\n");
    return 2;
  }
  tributary::DieWithParent(parent);
  // Ctrl-C and a service manager's SIGTERM reach the whole group; the daemon drains first and then tells us.
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGTERM, SIG_IGN);
  ::signal(SIGPIPE, SIG_IGN);
  TRIB_LOG_IF_ERROR(tributary::InitLogging("tributary-worker", tributary::LogFormat::kText, "info"));
  tributary::aggregator::WorkerRuntime runtime{tributary::UniqueFd(channel_fd)};
  const absl::Status status = runtime.Run();
  if (status.ok()) return 0;
  TRIB_LOG(error, "worker stops: {}", tributary::MessageOf(status));
  return 1;
}
