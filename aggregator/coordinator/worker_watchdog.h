// Finds worker processes that live and get nothing done: stopped, or caught in a loop. Death is the fleet's to see; this is not.
//
// A worker with something queued that has got nothing done for half of `patience` is asked (kPing). Healthy ones answer between two
// pieces of work, also those that wait because their job's timing says so. One that neither answers nor gets anything done for the other
// half is hung: it is killed, and its replacement goes on at the same block. A wrong verdict costs a restart, never a result.
//
// Time counts only as far as Look is called: after the daemon itself was stopped nobody is blamed for it.
// Pure. Thread-compatible: the pool's lock guards it.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>

#include "aggregator/coordinator/worker_fleet.h"

namespace tributary::aggregator {

class WorkerWatchdog {
 public:
  enum class Verdict { kFine, kAsk, kHung };

  explicit WorkerWatchdog(absl::Duration patience) : patience_(patience) {}

  // About once a second while anything is under way. kAsk and kHung come once each.
  Verdict Look(uint32_t worker, const WorkerFleet::Owner::Work& work, absl::Time now);
  // It has answered.
  void Answered(uint32_t worker) { watched_.erase(worker); }
  // It is another process now, or none.
  void Forget(uint32_t worker) { watched_.erase(worker); }

 private:
  struct Watched {
    uint64_t stamp = 0;
    absl::Time looked;
    absl::Duration silent;  // since it was asked, or else since it got something done
    bool asked = false;
    bool hung = false;
  };
  const absl::Duration patience_;
  std::map<uint32_t, Watched> watched_;  // those with something queued
};

}  // namespace tributary::aggregator
