// TRIB_CHECK: an invariant of our own code, checked in every build. Aborts with file, line and message when broken.
// No byte from outside may ever decide a TRIB_CHECK: the world's errors are absl::Status (status.h).
// TRIB_DCHECK: the same, in debug builds only, for inner loops.
#pragma once

#include <fmt/format.h>

#include <string>

namespace tributary {
// Prints one line to stderr and aborts. Never returns.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression, const std::string& message);
}  // namespace tributary

#define TRIB_CHECK(expression, ...)                                                                        \
  do {                                                                                                     \
    if (!(expression)) [[unlikely]]                                                                        \
      ::tributary::CheckFailed(__FILE__, __LINE__, #expression, ::fmt::format("" __VA_ARGS__));            \
  } while (false)

#ifdef NDEBUG
#define TRIB_DCHECK(expression, ...) \
  do {                               \
  } while (false && (expression))
#else
#define TRIB_DCHECK(expression, ...) TRIB_CHECK(expression __VA_OPT__(, ) __VA_ARGS__)
#endif
