// Delay before the next try of something that failed: full jitter between 0 and a cap that doubles from 1 s to 60 s. The first
// retry comes after at most 100 ms, because most failures are a server that restarts.
// A server's own push-back delay overrides the schedule, spread by ± 20 % so that its clients do not return together. A server that says
// when to come back is there: however often it does, the next failure of another kind is a first one.
// Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
// Pure: the caller brings the random bits. Thread-compatible.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <optional>

namespace tributary::client {

class Backoff {
 public:
  struct Limits {
    absl::Duration first = absl::Milliseconds(100);
    absl::Duration base = absl::Seconds(1);
    absl::Duration cap = absl::Seconds(60);
  };

  Backoff() = default;
  explicit Backoff(const Limits& limits) : limits_(limits) {}

  // The delay before the next try, given that the last one failed. `random`: 64 uniform bits.
  absl::Duration Next(uint64_t random, std::optional<absl::Duration> push_back = std::nullopt);
  // Something worked: the next failure starts the schedule over.
  void Reset() { failures_ = 0; }
  int failures() const { return failures_; }

 private:
  Limits limits_;
  int failures_ = 0;
};

}  // namespace tributary::client
