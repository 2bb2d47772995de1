// A fixed number of threads that run submitted functions in the order given. The queue holds at most what its users submit: the
// client runtime submits at most one piece of work per identity and one upload per kept update.
// The destructor drops what has not begun, lets what runs finish, and joins. Threads: safe.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <functional>
#include <thread>
#include <vector>

namespace tributary::client {

class WorkerPool {
 public:
  // Functions receive the index of their thread, to find what belongs to it (a learner).
  explicit WorkerPool(int threads);
  ~WorkerPool();
  void Submit(std::function<void(int thread)> function);

 private:
  void Run(int thread);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !queue_.empty(); }

  absl::Mutex mutex_;
  std::deque<std::function<void(int)>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::jthread> threads_;  // last: joined before the rest goes
};

}  // namespace tributary::client
