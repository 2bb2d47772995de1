// The deliberately wrong SK_MSG program of T14, loaded and attached, with the means to put a socket into its map.
// Errors: errno's, as absl::Status. Needs what the real program needs.
#pragma once

#include <cstdint>
#include <memory>

#include "common/status.h"

namespace tributary::testing {

class StickyDrop {
 public:
  static absl::StatusOr<std::unique_ptr<StickyDrop>> Load();
  ~StickyDrop();
  absl::Status Insert(uint32_t key, int socket_fd);

 private:
  struct Impl;
  explicit StickyDrop(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tributary::testing
