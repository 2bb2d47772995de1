// Passing 32-byte descriptors from one producer to one consumer: bounded lanes in shared memory plus a wake-up.
//
// One interface, three transports (LANES.md tells them apart): `ring`, always built; `skmsg` and `skmsg-inline`, whose records the kernel
// routes and polices (skmsg_endpoint.h). Rules: dataplane.md §4 and §5. A producer needs a credit before it writes (no credit: UNAVAILABLE,
// and it is woken when one comes); order is kept; nothing is lost or duplicated; the slots between `done` and `tail` are the replay log of
// a crashed consumer.
// Threads: one thread per end; ends of one endpoint share its thread. Errors: DATA_LOSS when the other end's cursors or names lie (the
// lane is then closed for this end).
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/abi/dataplane_abi.h"
#include "common/status.h"

namespace tributary::aggregator {

class LaneProducer {
 public:
  virtual ~LaneProducer() = default;
  // UNAVAILABLE when no credit is free, or the daemon has paused the lane.
  virtual absl::Status Push(const tb_desc& desc) = 0;
  // Whether a push would find one. The first no in a row counts as a stall. DATA_LOSS as Done().
  virtual absl::StatusOr<bool> HasCredit() = 0;
  // Sleeps until a credit may be free, the consumer advanced `done`, the consumer's process ended, or the timeout. True if `done` moved.
  virtual bool WaitForProgress(absl::Duration timeout) = 0;
  // Descriptors the consumer has released (free-running count).
  virtual absl::StatusOr<uint32_t> Done() = 0;
  // For an event loop: asks for one doorbell at the consumer's next Release. True if `done` has moved (or lies) since the last
  // Done(): then look again instead of sleeping.
  virtual bool ArmProgress() = 0;
  // The process at the other end has ended (LaneOptions::peer_pidfd). What it has released counts. Asking costs a system call.
  virtual bool PeerEnded() { return false; }
  virtual uint32_t pushed() const = 0;   // free-running
  virtual uint32_t capacity() const = 0;
};

class LaneConsumer {
 public:
  virtual ~LaneConsumer() = default;
  // Copies up to out.size() descriptors that were not taken yet. 0 when there are none.
  virtual absl::StatusOr<size_t> Poll(std::span<tb_desc> out) = 0;
  // Sleeps until there is something to poll, the producer's process ended, or the timeout. True if there is something.
  virtual bool Wait(absl::Duration timeout) = 0;
  // Releases everything up to the free-running cursor value `done` (monotone); rings a waiting producer.
  virtual void Release(uint32_t done) = 0;
  // For an event loop over several lanes: Arm every lane; if one returns true there is something to poll, do not sleep; sleep on
  // the doorbell fd with a safety timeout; Disarm every lane, saying whether the sleep ended by the timeout. Between the first Arm and
  // the sleep nothing of the endpoint is polled or drained: that would take away what is to end the sleep.
  virtual bool Arm() = 0;
  virtual void Disarm(bool timed_out) = 0;
  // After a dead letter for this consumer reached the daemon: takes what has been pushed so far from the lane, whether its records came
  // or not. Only `skmsg-inline` ever waits for records.
  virtual void Replay() {}
  // As at the producer. What it pushed before it ended is still there to poll.
  virtual bool PeerEnded() { return false; }
  virtual uint32_t tail() const = 0;     // free-running: taken
  virtual uint64_t late_wakeups() const = 0;  // timeouts that found work: a defect, tests assert 0
};

enum class TransportKind { kRing, kSkMsg, kSkMsgInline };
std::string_view NameOf(TransportKind kind);  // "ring", "skmsg", "skmsg-inline"

// How long a consumer sleeps before it looks without having been rung, after `idle` such looks in a row that found nothing. A second, so
// that a lost doorbell would be counted soon; longer once a lane has been idle, because 32 idle workers that look each second cost more
// than the 0.02 CPU s in 10 s that they may (accept_T7). Event loops over several lanes use it too.
absl::Duration SafetyTimeout(uint32_t idle);

struct LaneOptions {
  uint32_t peer = 0;      // id of the other end. 0: it has none (`ring` only)
  uint16_t lane = 0;      // tells several lanes between the same two apart
  int ring_fd = -1;       // `ring` with eventfds: the one that wakes the other end
  int peer_pidfd = -1;    // readable when the other end's process has ended; -1: nobody watches. Borrowed
};

// One end of a transport: what one thread (usually: one process) sleeps on, and all its lanes. It outlives the lanes opened through it.
class TransportEndpoint {
 public:
  virtual ~TransportEndpoint() = default;
  virtual TransportKind kind() const = 0;
  // `region` is borrowed and must outlive the lane. A consumer opened on a lane with history starts at `done`: replay. A producer opened
  // on one goes on behind it, and rings for what its predecessor may not have rung for.
  virtual absl::StatusOr<std::unique_ptr<LaneProducer>> OpenProducer(std::span<std::byte> region, const LaneOptions& options) = 0;
  virtual absl::StatusOr<std::unique_ptr<LaneConsumer>> OpenConsumer(std::span<std::byte> region, const LaneOptions& options) = 0;
  // For an event loop: readable when a doorbell or record has come. -1: a thread per lane. Ask each time: it may change.
  virtual int wait_fd() const = 0;
  // Takes what made wait_fd readable. Before polling the lanes.
  virtual void Drain() = 0;
};

// `wait_fd`: an eventfd (borrowed), or -1 for a futex in each lane.
std::unique_ptr<TransportEndpoint> MakeRingEndpoint(uint32_t self, int wait_fd = -1);

// Bytes of a lane region with room for `capacity` descriptors (a power of two, <= TB_MAX_LANE_CAPACITY).
size_t LaneBytes(uint32_t capacity);
// Formats fresh memory as an empty lane.
absl::Status FormatLane(std::span<std::byte> region, uint32_t capacity);

// For the daemon, on lanes it made.
// In place of a consumer that does not run yet, or has died: the next push rings, and with SK_MSG transports the ring arrives at the daemon
// as a dead letter. True: something is queued already, start the consumer now.
absl::StatusOr<bool> ArmForAbsentConsumer(std::span<std::byte> region);
// While paused, Push answers UNAVAILABLE. A producer that waits notices the end of the pause at its next look (within a second).
absl::Status SetLanePaused(std::span<std::byte> region, bool paused);
// Descriptors that were pushed and not released: 0 means drained.
absl::StatusOr<uint32_t> LaneBacklog(std::span<std::byte> region);
// What has gone through a lane, as its two ends say. For people: nothing may be decided by it.
struct LaneStats {
  uint64_t pushed = 0, released = 0;
  uint64_t doorbells = 0, credits = 0;  // rings, and with SK_MSG transports records, sent by its producer and by its consumer
  uint64_t stalls = 0;                  // times that a row of pushes found no credit
  uint64_t late_wakeups = 0;            // sleeps that a doorbell should have ended and did not: a defect
  LaneStats& operator+=(const LaneStats& other);
};
LaneStats ReadLaneStats(std::span<std::byte> region);  // zeros if it is no lane

// How one end of a ring lane is woken and wakes the other. -1: the futex word in the lane (a thread per lane); otherwise an eventfd
// (an event loop, one fd for any number of lanes). Both ends must agree. The fds are borrowed.
struct RingDoorbell {
  int wait_fd = -1;  // this end sleeps on it; drained by Wait / WaitForProgress
  int ring_fd = -1;  // wakes the other end
};
void RingEventFd(int fd);
void DrainEventFd(int fd);

// The ends. `region` is borrowed and must outlive them. A consumer attached to a lane with history starts at `done`: replay.
absl::StatusOr<std::unique_ptr<LaneProducer>> AttachRingProducer(std::span<std::byte> region, RingDoorbell doorbell = {});
absl::StatusOr<std::unique_ptr<LaneConsumer>> AttachRingConsumer(std::span<std::byte> region, RingDoorbell doorbell = {});

}  // namespace tributary::aggregator
