#include "client/rpc/ready_tasks.h"

#include <utility>

namespace tributary::client {
namespace {

bool Trains(const ReadyTask& task) { return task.prepared.task.kind == Task::Kind::kTrain; }

}  // namespace

void ReadyTasks::Expect(const std::string& job) {
  absl::MutexLock lock(&mutex_);
  ++expected_[job];
}

void ReadyTasks::Arrive(const std::string& job, std::optional<ReadyTask> task) {
  absl::MutexLock lock(&mutex_);
  if (const auto at = expected_.find(job); at != expected_.end() && --at->second == 0) expected_.erase(at);
  if (task) ready_.push_back(*std::move(task));
}

std::vector<ReadyTask> ReadyTasks::Take(size_t most) {
  absl::MutexLock lock(&mutex_);
  std::vector<ReadyTask> taken;
  for (auto at = ready_.begin(); at != ready_.end() && taken.size() < most;) {
    const bool fits = taken.empty() ? most == 1 || !Trains(*at) || !expected_.contains(at->prepared.task.job)
                                    : Trains(*at) && at->prepared.job == taken[0].prepared.job;
    if (!fits) {
      ++at;
      continue;
    }
    taken.push_back(std::move(*at));
    at = ready_.erase(at);
    if (!Trains(taken[0])) break;
  }
  return taken;
}

}  // namespace tributary::client
