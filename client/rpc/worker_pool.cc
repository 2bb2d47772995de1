#include "client/rpc/worker_pool.h"

#include <utility>

namespace tributary::client {

WorkerPool::WorkerPool(int threads) {
  threads_.reserve(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this, i] { Run(i); });
}

WorkerPool::~WorkerPool() {
  std::deque<std::function<void(int)>> dropped;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    dropped.swap(queue_);
  }
  threads_.clear();
}

void WorkerPool::Submit(std::function<void(int)> function) {
  absl::MutexLock lock(&mutex_);
  if (!stopping_) queue_.push_back(std::move(function));
}

void WorkerPool::Run(int thread) {
  for (;;) {
    std::function<void(int)> function;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &WorkerPool::HasWork));
      if (stopping_) return;
      function = std::move(queue_.front());
      queue_.pop_front();
    }
    function(thread);
  }
}

}  // namespace tributary::client
