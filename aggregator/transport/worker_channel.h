// The control channel between daemon and worker: a SOCK_SEQPACKET Unix socket pair made by the daemon. Fixed records; file
// descriptors ride along (SCM_RIGHTS). Payload and descriptors never use it. Both ends check every field.
// Threads: thread-compatible. Errors: UNAVAILABLE when the peer is gone, INVALID_ARGUMENT for a malformed record,
// DEADLINE_EXCEEDED from Send when the peer has not read for kSendTimeout.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "common/status.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

enum class WorkerMessageKind : uint32_t {
  // daemon -> worker
  kOpenJob = 1,      // layout facts; fds: lane, slab. Its segments may come before it
  kSegment = 2,      // fd: segment
  kHello = 3,        // first record; fds: doorbell eventfd the worker sleeps on, progress eventfd it rings
  kCloseJob = 4,     // drop everything of the job
  kStop = 5,
  kRole = 6,         // what a seat is to do in a lap. Repeatable: a seat takes an epoch once
  kChild = 7,        // fds: lane, slab (read-only): the partial of `child` will come there. May come before kOpenJob
  kParent = 8,       // fds: lane, doorbell of its consumer: where the partial goes once it is complete
  kAnchor = 9,       // fd: anchor (SK_MSG transports). Before everything else of the seat; repeated: instead of the last one
  kReplay = 10,      // something sent to the seat did not arrive: look at its lanes
  kPing = 11,        // answer with kPong, between two pieces of work
  // worker -> daemon
  kReady = 16,
  kRefused = 17,     // descriptor `key` was not folded: bad object, or not finite. Sent before the lane's `done` passes it
  kFailed = 18,      // the worker cannot go on with the job (reason code); it drops the job
  kRoleTaken = 19,   // the seat acts under `epoch`
  kComplete = 20,    // the role of `epoch` has all its inputs; its partial of `folded` updates is published (0: there is none)
  kMerged = 21,      // the partial of `child` is in the seat's sums and no longer looked at
  kPong = 22,
};

// What a seat is in its job. Middle and top take partials too; a range is a seat of a shard.
enum class SeatRole : uint32_t { kParked = 0, kRange = 1, kLeaf = 2, kMiddle = 3, kTop = 4 };
const char* SeatRoleName(SeatRole role);  // "parked", "range", …

struct WorkerMessage {
  WorkerMessageKind kind{};
  uint32_t job = 0;              // number of a seat (one worker's part of a job) on this node, never reused
  uint32_t round = 0;
  uint32_t dtype = 0;            // kOpenJob: DType
  uint32_t arithmetic = 0;       // kOpenJob: Arithmetic
  uint32_t pool = 0, segment = 0;
  uint64_t first_element = 0, elements = 0;   // kOpenJob: this worker's range
  uint64_t float_count = 0, counter_count = 0;  // kOpenJob: of the layout
  uint64_t trainable_count = 0, kept = 0;     // kOpenJob: of the layout; entries of a topk update
  uint32_t codec = 0;                         // kOpenJob: Codec of the objects
  uint32_t folds_counters = 0;                // kOpenJob: 1 for the one worker that also folds the counters
  uint64_t lane_bytes = 0, slab_bytes = 0, segment_bytes = 0, slot_bytes = 0;
  uint64_t key_hi = 0, key_lo = 0;            // kRefused
  uint32_t code = 0;                          // kRefused, kFailed: absl::StatusCode
  char reason[96] = {};                       // kRefused, kFailed: for people, NUL-terminated
  char reducer[32] = {};                      // kOpenJob: strategy name whose reducer to run
  uint32_t timing = 0, batch = 0, max_fold = 0;  // kOpenJob: TimingKind and its B; updates per pass at most
  uint32_t batch_age_us = 0, slack_us = 0;    // kOpenJob: of batch and of jit
  uint32_t lap = 0;                           // kRole, kChild, kParent, kComplete, kMerged
  uint32_t epoch = 0;                         // kRole, kRoleTaken, kComplete: of the seat, rising
  uint32_t role = 0;                          // kRole: SeatRole
  uint32_t goal_known = 0, goal_cursor = 0;   // kRole: cursor of the update lane at which all updates are there that are expected. A
                                              // leaf or middle takes no more; for the others it only is what lazy folding waits for
  uint32_t hurry = 0;                         // kRole: 1: wait for nothing, whatever the timing
  uint32_t depth = 0;                         // kRole: merges above the seat, for jit
  uint64_t children = 0;                      // kRole: whose partials the role needs, a bit each
  uint32_t child = 0, child_seat = 0;         // kChild, kMerged: its bit; kChild: its seat, whose slab is mapped only once
  uint32_t lane = 0, src = 0, dst = 0;        // kOpenJob, kChild, kParent: number of the lane, who produces; kParent, kAnchor: who
                                              // consumes, or whose it is (ids as in descriptors)
  uint32_t transport = 0;                     // kAnchor: TransportKind
  uint64_t folded = 0;                        // kComplete
};

// How many file descriptors a record of this kind carries; -1 for a kind that does not exist.
int FdsOf(WorkerMessageKind kind);

class WorkerChannel {
 public:
  static constexpr int kMaxFds = 2;
  static constexpr absl::Duration kSendTimeout = absl::Seconds(2);
  explicit WorkerChannel(UniqueFd socket) : socket_(std::move(socket)) {}
  // {daemon end, worker end}, both CLOEXEC.
  static absl::StatusOr<std::pair<WorkerChannel, UniqueFd>> CreatePair();
  absl::Status Send(const WorkerMessage& message, std::vector<int> fds = {});
  struct Received { WorkerMessage message; std::vector<UniqueFd> fds; };
  // DEADLINE_EXCEEDED when nothing came within `timeout`.
  absl::StatusOr<Received> Receive(absl::Duration timeout);
  int fd() const { return socket_.get(); }

 private:
  UniqueFd socket_;
};

}  // namespace tributary::aggregator
