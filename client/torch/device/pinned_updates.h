// Has all LargeBytes of this process be pinned memory from now on (kept_memory.h), up to an eighth of the machine's. Repeated calls do nothing.
// Threads: safe. Errors: none; without a GPU nothing changes.
#pragma once

namespace tributary::client {

void PinUpdates();

}  // namespace tributary::client
