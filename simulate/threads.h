// Independent calls side by side on threads of the moment.
// Errors: the calls' own.
#pragma once

#include <cstddef>
#include <functional>

#include "common/status.h"

namespace tributary::simulate {

// call(i, thread) for each i in [0, count) on at most `threads` threads; the first error in order of i. What comes after an error may not be
// called at all.
absl::Status OnThreads(size_t threads, size_t count, const std::function<absl::Status(size_t, size_t)>& call);

}  // namespace tributary::simulate
