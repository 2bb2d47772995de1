// Where time comes from. Deadlines and leases run on CLOCK_BOOTTIME (it counts suspend and never jumps); wall clock appears
// only in logs and stored records. Pure code never reads a clock: it is told `now`.
// Threads: both clocks are safe to share.
#pragma once

#include <absl/time/clock.h>
#include <absl/time/time.h>

#include <time.h>

#include <atomic>
#include <cstdint>

namespace tributary {

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic. Only differences of two readings of one boot mean anything.
  virtual absl::Time Now() const = 0;
};

class BootClock final : public Clock {
 public:
  absl::Time Now() const override {
    timespec ts{};
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return absl::TimeFromTimespec(ts);
  }
};

// A clock that moves only when told to, for tests and simulation. Starts at `start_s` seconds.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(int64_t start_s = 1000) : nanos_(start_s * 1'000'000'000) {}
  absl::Time Now() const override { return absl::FromUnixNanos(nanos_.load()); }
  void Advance(absl::Duration by) { nanos_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> nanos_;
};

// Wall-clock microseconds since 1970, for records people read. Never for a deadline.
inline int64_t WallMicros() { return absl::ToUnixMicros(absl::Now()); }

}  // namespace tributary
