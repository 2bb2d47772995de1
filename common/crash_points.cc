#include "common/crash_points.h"

#ifdef TRIBUTARY_CRASH_POINTS

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace tributary {
namespace {

constexpr const char* kNames[] = {
#define TRIB_CRASH_POINT_NAME(name) #name,
#include "common/crash_points.def"
#undef TRIB_CRASH_POINT_NAME
};

struct Target {
  int point = -1;
  long passage = 0;
  int signal = SIGKILL;
};

Target ReadTarget() {
  const char* text = std::getenv("TRIBUTARY_CRASH");
  if (text == nullptr) return {};
  const char* colon = std::strchr(text, ':');
  const std::string name = colon ? std::string(text, colon) : std::string(text);
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (name != kNames[i]) continue;
    return {static_cast<int>(i), colon ? std::atol(colon + 1) : 1, std::string(text).ends_with(":stop") ? SIGSTOP : SIGKILL};
  }
  return {};
}

}  // namespace

void PassCrashPoint(CrashPoint point) {
  static const Target target = ReadTarget();
  static std::atomic<long> passages{0};
  if (static_cast<int>(point) != target.point) return;
  if (passages.fetch_add(1) + 1 == target.passage) ::kill(::getpid(), target.signal);
}

}  // namespace tributary

#endif
