// Named places where a test may kill the process: TRIB_CRASH_POINT(state_commit_before_sync).
// With TRIBUTARY_CRASH_POINTS (debug and sanitizer presets) the environment variable TRIBUTARY_CRASH=name:n raises SIGKILL at
// the n-th passage of that point in this process (n from 1), TRIBUTARY_CRASH=name:n:stop SIGSTOP. Otherwise the macro is nothing and no name is in the binary.
// All names are in crash_points.def, each used exactly once (the tidy test checks it). Threads: safe.
#pragma once

#ifdef TRIBUTARY_CRASH_POINTS
namespace tributary {
enum class CrashPoint {
#define TRIB_CRASH_POINT_NAME(name) name,
#include "common/crash_points.def"
#undef TRIB_CRASH_POINT_NAME
};
void PassCrashPoint(CrashPoint point);
}  // namespace tributary
#define TRIB_CRASH_POINT(name) ::tributary::PassCrashPoint(::tributary::CrashPoint::name)
#else
#define TRIB_CRASH_POINT(name) static_cast<void>(0)
#endif
