#include "simulate/threads.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace tributary::simulate {

absl::Status OnThreads(size_t threads, size_t count, const std::function<absl::Status(size_t, size_t)>& call) {
  threads = std::min(threads, count);
  if (threads <= 1) {
    for (size_t i = 0; i < count; ++i) TRIB_RETURN_IF_ERROR(call(i, 0));
    return absl::OkStatus();
  }
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};  // what comes after an error is not begun
  std::vector<absl::Status> errors(count);
  {
    std::vector<std::jthread> workers;
    for (size_t t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        while (!failed) {
          const size_t i = next++;
          if (i >= count) break;
          errors[i] = call(i, t);
          if (!errors[i].ok()) failed = true;
        }
      });
    }
  }
  for (const absl::Status& error : errors) TRIB_RETURN_IF_ERROR(error);
  return absl::OkStatus();
}

}  // namespace tributary::simulate
