// Independent calls side by side, on threads that stay: starting sixteen of them costs as much as a small model's whole server step.
// Errors: the calls' own.
#pragma once

#include <cstddef>
#include <functional>

#include "common/status.h"

namespace tributary::simulate {

// call(i, thread) for each i in [0, count) on at most `threads` threads, of which the caller's is number 0; the first error in order of i. What
// comes after an error may not be called at all. While another thread is in here, or this one already is, the caller's does all of it.
absl::Status OnThreads(size_t threads, size_t count, const std::function<absl::Status(size_t, size_t)>& call);

}  // namespace tributary::simulate
