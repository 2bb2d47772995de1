// Ending calls from outside: because they stalled, because another one takes their place, or because the server goes away.
//
// A gRPC reactor deletes itself when its call is done, so nobody else may hold it. What others hold is a StreamEnd, shared, which
// outlives the reactor and turns into nothing once the call has ended.
// Threads: everything here is safe from any thread.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/status.h"

namespace tributary::aggregator {

class StreamEnd {
 public:
  virtual ~StreamEnd() = default;
  // Ends the call with this status; nothing if it has ended. May run the reactor's Finish.
  virtual void End(const absl::Status& status) = 0;
  // Calls that do not end by themselves are ended first when the server shuts down.
  virtual bool endless() const { return false; }

  void set_deadline(absl::Time deadline) { deadline_ns_.store(absl::ToUnixNanos(deadline), std::memory_order_relaxed); }
  void clear_deadline() { deadline_ns_.store(kNever, std::memory_order_relaxed); }
  // Whether the deadline has passed; if so it is cleared. Relaxed: one number, read by a sweep that comes again.
  bool TakeExpired(absl::Time now) {
    int64_t seen = deadline_ns_.load(std::memory_order_relaxed);
    return seen <= absl::ToUnixNanos(now) && deadline_ns_.compare_exchange_strong(seen, kNever, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> deadline_ns_{kNever};
};

// For calls where ending is one action (a reactor's Finish, or a cancellation): performs it at most once. The reactor lives until
// its own Finish, which only the winner of Claim() calls; so the action may refer to the reactor.
class OnceEnd final : public StreamEnd {
 public:
  explicit OnceEnd(std::function<void(const absl::Status&)> action) : action_(std::move(action)) {}
  // True for exactly one caller, who must end the call.
  bool Claim() { return !claimed_.exchange(true); }
  bool claimed() const { return claimed_.load(); }
  void End(const absl::Status& status) override {
    if (Claim()) action_(status);
  }

 private:
  const std::function<void(const absl::Status&)> action_;
  std::atomic<bool> claimed_{false};
};

// For calls that are cancelled rather than finished: the action runs under the mutex, and Detach() waits for it, so that what the
// action refers to may go afterwards. The action must not wait for the call's own reactions.
class DetachableEnd final : public StreamEnd {
 public:
  explicit DetachableEnd(std::function<void()> action) : action_(std::move(action)) {}
  void End(const absl::Status&) override {
    absl::MutexLock lock(&mutex_);
    if (action_ != nullptr) action_();
  }
  void Detach() {
    absl::MutexLock lock(&mutex_);
    action_ = nullptr;
  }

 private:
  absl::Mutex mutex_;
  std::function<void()> action_ ABSL_GUARDED_BY(mutex_);
};

// The calls that have deadlines. Holds them weakly.
class StreamWatch {
 public:
  // `what` completes "no … in time": "byte of the upload for 30 s".
  void Add(const std::shared_ptr<StreamEnd>& stream, std::string what);
  // Ends every call whose deadline has passed with DEADLINE_EXCEEDED.
  void Sweep(absl::Time now);
  void EndEndless(const absl::Status& status);

 private:
  struct Entry {
    std::weak_ptr<StreamEnd> stream;
    std::string what;
  };
  absl::Mutex mutex_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  size_t prune_at_ ABSL_GUARDED_BY(mutex_) = 64;
};

}  // namespace tributary::aggregator
