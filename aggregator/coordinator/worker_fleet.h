// The worker processes of a pool and their channels: started, spoken to, heard, and replaced when they die.
//
// A worker that dies soon after its start without progress is started again ever more slowly. One that dies
// kDeathsWithoutProgress times in a row at the same place with work waiting has met something that kills it: the owner is told.
//
// Thread-compatible: the owner's lock guards it. Turn belongs to one thread, which must outlive the workers: a child asks for its
// death when the *thread* that made it ends.
#pragma once

#include <absl/time/time.h>
#include <poll.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "aggregator/transport/worker_channel.h"
#include "common/process.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

class WorkerFleet {
 public:
  static constexpr uint32_t kDeathsWithoutProgress = 8;

  // What the owner is told and asked, from within Turn.
  class Owner {
   public:
    virtual ~Owner() = default;
    // A new process runs and has its doorbells: tell it its jobs.
    virtual void Greet(uint32_t worker) = 0;
    // An error is the worker's fault: it is replaced.
    virtual absl::Status Hear(uint32_t worker, const WorkerMessage& message) = 0;
    struct Work {
      uint64_t stamp = 0;    // changes whenever the worker gets anything done, down to a single block
      bool waiting = false;  // something is queued for it
    };
    virtual Work WorkOf(uint32_t worker) = 0;
    virtual void OnStuck(uint32_t worker, const std::string& reason) = 0;
  };

  // `progress_fd` is rung by the workers; borrowed.
  WorkerFleet(std::string program, int progress_fd, Owner* owner)
      : program_(std::move(program)), progress_fd_(progress_fd), owner_(owner) {}

  // A worker more; its process starts at the next Turn, which is rung for. Returns its index: one that is free again, or a new one.
  absl::StatusOr<uint32_t> Add();
  // Tells it to stop and does not replace it. Its index is free once its process has ended.
  void Retire(uint32_t worker);
  // Ends its process and keeps its index and doorbell: it is cold until Rouse, which starts another.
  void Rest(uint32_t worker);
  void Rouse(uint32_t worker);

  void Tell(uint32_t worker, const WorkerMessage& message, std::vector<int> fds = {});
  void Kill(uint32_t worker, const absl::Status& why);

  // Hears, buries and starts. Returns how long nothing has to be done here.
  absl::Duration Turn(absl::Time now);
  // What Turn is to be called for.
  void AddPollFds(std::vector<pollfd>* fds) const;
  // No more replacements. Tells every worker to stop and hands its process over: waiting is done without the lock, by WaitForEnd.
  std::vector<std::unique_ptr<ChildProcess>> Stop();
  static void WaitForEnd(std::vector<std::unique_ptr<ChildProcess>> children);

  uint32_t size() const { return static_cast<uint32_t>(workers_.size()); }
  bool active(uint32_t worker) const { return workers_[worker].state == State::kActive; }
  bool listed(uint32_t worker) const { return workers_[worker].state == State::kActive || workers_[worker].state == State::kResting; }
  bool cold(uint32_t worker) const { return workers_[worker].state == State::kResting && !workers_[worker].roused; }
  bool all_ready() const;
  // The first failure to start a process, until ForgiveStart.
  const absl::Status& start_status() const { return start_status_; }
  void ForgiveStart() { forgiving_ = true; }
  int doorbell(uint32_t worker) const { return workers_[worker].doorbell.get(); }
  int pid(uint32_t worker) const;  // 0 while there is none
  uint32_t restarts(uint32_t worker) const { return workers_[worker].restarts; }

 private:
  enum class State { kActive, kResting, kRetiring, kFree };
  struct Worker {
    State state = State::kActive;
    bool roused = false;        // kResting: to be started again once the process has ended
    absl::Time retire_by = absl::InfiniteFuture();
    std::unique_ptr<ChildProcess> process;  // empty while dead
    std::unique_ptr<WorkerChannel> channel;
    UniqueFd doorbell;
    bool channel_broken = false;  // say and believe nothing more on it
    bool ready = false;
    uint32_t restarts = 0;
    absl::Time started_at = absl::InfinitePast();
    absl::Time respawn_at = absl::InfinitePast();
    uint64_t progress_stamp = 0;  // at the last death
    uint32_t quick_deaths = 0;    // in a row: soon after the start and without progress; sets the backoff
    uint32_t stuck_deaths = 0;    // in a row: with work waiting and without progress
  };

  absl::Status Spawn(uint32_t index);
  absl::Duration TurnActive(uint32_t index, absl::Time now);
  absl::Duration TurnResting(uint32_t index, absl::Time now);
  absl::Duration TurnRetiring(uint32_t index, absl::Time now);
  void TellStop(uint32_t index);
  // True: the process of a worker that was told to stop has ended. Otherwise `*sleep` says when it is killed.
  bool HasStopped(Worker& worker, absl::Time now, absl::Duration* sleep);
  void OnDeath(uint32_t index, absl::Time now);
  void DrainChannel(uint32_t index);

  const std::string program_;
  const int progress_fd_;
  Owner* const owner_;
  std::deque<Worker> workers_;  // grows, also from within Turn: references must stay
  bool stopping_ = false;
  bool forgiving_ = false;
  absl::Status start_status_;
};

}  // namespace tributary::aggregator
