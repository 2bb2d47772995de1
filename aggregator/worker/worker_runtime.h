// The worker process: receives seats in jobs over its control channel (seat.h), takes descriptors from their lanes, folds what they
// name into their slabs. One thread; asleep when there is nothing to do. It trusts nothing it reads: objects, lanes, channel and slabs
// are copied and checked; what fails is refused by message (kRefused) or ends the seat (kFailed), never the process.
//
// Threads: Run() is the process's only thread. Errors: Run returns OK after kStop or when the daemon is gone, otherwise why the
// worker cannot live (a malformed record on the channel).
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "aggregator/transport/worker_channel.h"
#include "aggregator/worker/seat.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

class WorkerRuntime {
 public:
  explicit WorkerRuntime(UniqueFd channel);
  ~WorkerRuntime();
  absl::Status Run();

 private:
  enum class Next { kGoOn, kStop };

  // Handles every record that is waiting.
  absl::StatusOr<Next> DrainChannel();
  absl::StatusOr<Next> Handle(WorkerChannel::Received received);
  Seat& SeatOf(uint32_t number);
  void Fail(uint32_t number, const absl::Status& why);
  // Each seat's next batch: off the lanes, then into the slab. True if there was any.
  bool TakeAll();
  bool ProcessAll();
  void Sleep();

  WorkerChannel channel_;
  UniqueFd doorbell_;
  UniqueFd progress_;
  std::map<uint32_t, std::unique_ptr<Seat>> seats_;
  uint32_t idle_ = 0;  // sleeps in a row that nothing ended
};

}  // namespace tributary::aggregator
