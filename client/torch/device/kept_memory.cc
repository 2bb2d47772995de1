#include "client/torch/device/kept_memory.h"

namespace tributary::client {

KeptMemory::~KeptMemory() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [bytes, blocks] : kept_) {
    for (void* block : blocks) free_(block);
  }
}

void* KeptMemory::Take(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (const auto same = kept_.find(bytes); same != kept_.end() && !same->second.empty()) {
    void* const block = same->second.back();
    same->second.pop_back();
    return block;
  }
  // What was kept for another job's updates makes room.
  for (auto at = kept_.begin(); at != kept_.end() && bytes > limit_bytes_ - bytes_;) {
    for (void* block : at->second) {
      sizes_.erase(block);
      bytes_ -= at->first;
      free_(block);
    }
    at = kept_.erase(at);
  }
  if (bytes > limit_bytes_ - bytes_) return nullptr;
  void* const block = get_(bytes);
  if (block == nullptr) return nullptr;
  sizes_[block] = bytes;
  bytes_ += bytes;
  return block;
}

bool KeptMemory::Give(void* memory) {
  absl::MutexLock lock(&mutex_);
  const auto at = sizes_.find(memory);
  if (at == sizes_.end()) return false;
  kept_[at->second].push_back(memory);
  return true;
}

size_t KeptMemory::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

}  // namespace tributary::client
