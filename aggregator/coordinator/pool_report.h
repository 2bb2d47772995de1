// What a worker pool has to say to its owner: collected under the pool's lock, said without it.
// Threads: a value. Errors: none.
#pragma once

#include <cstdint>
#include <string>

#include "common/ids.h"

namespace tributary::aggregator {

struct PoolReport {
  enum class Kind { kFolded, kRefused, kLost } kind;
  uint32_t job = 0;
  UpdateId update;      // kFolded, kRefused
  std::string reason;   // kRefused, kLost
};

}  // namespace tributary::aggregator
