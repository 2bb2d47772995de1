#include "simulate/threads.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace tributary::simulate {
namespace {

class Crew {
 public:
  // work(t) for each t in [0, threads), t = 0 on this thread. False: the crew is at work.
  bool Run(size_t threads, const std::function<void(size_t)>& work) {
    if (at_work_.exchange(true)) return false;
    {
      absl::MutexLock lock(&mutex_);
      for (; members_ < threads; ++members_) std::thread([this, t = members_, seen = turn_] { Serve(t, seen); }).detach();
      work_ = &work;
      wanted_ = threads;
      left_ = threads - 1;
      ++turn_;
    }
    work(0);
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(+[](size_t* left) { return *left == 0; }, &left_));
      work_ = nullptr;
    }
    at_work_ = false;
    return true;
  }
  // Never destroyed: its threads are never joined.
  static Crew& Shared() {
    static auto* const crew = new Crew;
    return *crew;
  }

 private:
  void Serve(size_t t, uint64_t seen) {
    absl::MutexLock lock(&mutex_);
    const auto called = [this, &seen]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return turn_ != seen; };
    while (true) {
      mutex_.Await(absl::Condition(&called));
      seen = turn_;
      if (t >= wanted_) continue;
      const std::function<void(size_t)>& work = *work_;
      mutex_.Unlock();
      work(t);
      mutex_.Lock();
      --left_;
    }
  }

  std::atomic<bool> at_work_{false};
  absl::Mutex mutex_;
  size_t members_ ABSL_GUARDED_BY(mutex_) = 1;  // the caller is one
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t wanted_ ABSL_GUARDED_BY(mutex_) = 0, left_ ABSL_GUARDED_BY(mutex_) = 0;
  const std::function<void(size_t)>* work_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

absl::Status OnThreads(size_t threads, size_t count, const std::function<absl::Status(size_t, size_t)>& call) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};  // what comes after an error is not begun
  std::vector<absl::Status> errors(count);
  const std::function<void(size_t)> work = [&](size_t thread) {
    while (!failed) {
      const size_t i = next++;
      if (i >= count) break;
      errors[i] = call(i, thread);
      if (!errors[i].ok()) failed = true;
    }
  };
  threads = std::min(threads, count);
  if (threads <= 1 || !Crew::Shared().Run(threads, work)) work(0);
  for (const absl::Status& error : errors) TRIB_RETURN_IF_ERROR(error);
  return absl::OkStatus();
}

}  // namespace tributary::simulate
