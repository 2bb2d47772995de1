// Blocks for updates that are used again instead of going back to the system, and come from where a GPU copies to at full speed: pinned
// memory costs about as much to get as to fill, so it pays from the second update on. Blocks of one size serve one another.
// Threads: safe. Errors: none; over the limit, or when there is none to get, the system's memory is used.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <cstddef>
#include <map>
#include <unordered_map>
#include <vector>

#include "common/large_bytes.h"

namespace tributary::client {

class KeptMemory final : public LargeMemorySource {
 public:
  // `get`: null when there is none; `free`: of what get gave.
  using Get = void* (*)(size_t bytes);
  using Free = void (*)(void* memory);
  KeptMemory(Get get, Free free, size_t limit_bytes) : get_(get), free_(free), limit_bytes_(limit_bytes) {}
  ~KeptMemory() override;

  void* Take(size_t bytes) override;
  bool Give(void* memory) override;
  size_t bytes() const;  // in use and kept

 private:
  const Get get_;
  const Free free_;
  const size_t limit_bytes_;
  mutable absl::Mutex mutex_;
  std::unordered_map<void*, size_t> sizes_ ABSL_GUARDED_BY(mutex_);
  std::map<size_t, std::vector<void*>> kept_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace tributary::client
