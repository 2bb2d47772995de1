// Passing 32-byte descriptors from one producer to one consumer: bounded lanes in shared memory plus a wake-up.
//
// One interface; `ring` (lane + futex doorbell) is the implementation always built; SK_MSG transports come behind the same one.
// Rules: dataplane.md §4. A producer needs a credit before it writes (no credit: UNAVAILABLE, and it is woken when one comes);
// order is kept; nothing is lost or duplicated; the slots between `done` and `tail` are the replay log of a crashed consumer.
// Threads: one thread per end. Errors: DATA_LOSS when the other end's cursors lie (the lane is then closed).
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "common/abi/dataplane_abi.h"
#include "common/status.h"

namespace tributary::aggregator {

class LaneProducer {
 public:
  virtual ~LaneProducer() = default;
  // UNAVAILABLE when no credit is free.
  virtual absl::Status Push(const tb_desc& desc) = 0;
  // Sleeps until a credit may be free, the consumer advanced `done`, or the timeout. True if something changed.
  virtual bool WaitForProgress(absl::Duration timeout) = 0;
  // Descriptors the consumer has released (free-running count).
  virtual absl::StatusOr<uint32_t> Done() = 0;
  // For an event loop: asks for one doorbell at the consumer's next Release. True if `done` has moved (or lies) since the last
  // Done(): then look again instead of sleeping.
  virtual bool ArmProgress() = 0;
  virtual uint32_t pushed() const = 0;   // free-running
  virtual uint32_t capacity() const = 0;
};

class LaneConsumer {
 public:
  virtual ~LaneConsumer() = default;
  // Copies up to out.size() descriptors that were not taken yet. 0 when there are none.
  virtual absl::StatusOr<size_t> Poll(std::span<tb_desc> out) = 0;
  // Sleeps until there is something to poll or the timeout. True if there is.
  virtual bool Wait(absl::Duration timeout) = 0;
  // Releases everything up to the free-running cursor value `done` (monotone); rings a waiting producer.
  virtual void Release(uint32_t done) = 0;
  // For an event loop over several lanes: Arm every lane; if one returns true there is something to poll, do not sleep; sleep on
  // the doorbell fd with a safety timeout; Disarm every lane, saying whether the sleep ended by the timeout.
  virtual bool Arm() = 0;
  virtual void Disarm(bool timed_out) = 0;
  virtual uint32_t tail() const = 0;     // free-running: taken
  virtual uint64_t late_wakeups() const = 0;  // timeouts that found work: a defect, tests assert 0
};

struct TransportChoice {
  std::string_view name;     // "ring"
  std::string_view reason;
};

// Bytes of a lane region with room for `capacity` descriptors (a power of two, <= TB_MAX_LANE_CAPACITY).
size_t LaneBytes(uint32_t capacity);
// Formats fresh memory as an empty lane.
absl::Status FormatLane(std::span<std::byte> region, uint32_t capacity);
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
