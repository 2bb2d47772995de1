#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace tributary {

void CheckFailed(const char* file, int line, const char* expression, const std::string& message) {
  std::fprintf(stderr, "%s:%d: TRIB_CHECK(%s) failed. %s\n", file, line, expression, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace tributary
