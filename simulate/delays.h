// How long a task takes, from its issue to the arrival of its update (algorithms.md §4, `simulate.delay`), in whole nanoseconds: times
// are compared for equality, and of a sum of floating seconds the last bit would decide who misses a tick.
// Draw k of client i depends on (seed, i, k) alone. Threads: immutable. Errors: INVALID_ARGUMENT naming the key, expected and got.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/simulate_spec.h"
#include "common/status.h"

namespace tributary::simulate {

class Delays {
 public:
  static absl::StatusOr<std::unique_ptr<Delays>> Make(const DelaySpec& spec, int64_t clients, uint64_t seed);
  virtual ~Delays() = default;
  // Duration of the client's k-th task (from 0), issued at `now_ns`. Nothing: it never comes back (a trace has ended).
  virtual std::optional<int64_t> Nanoseconds(uint32_t client, uint64_t k, int64_t now_ns) const = 0;
  // E[max(1, ⌈T/Δ⌉)] and E[T] in seconds; nothing where a trace decides.
  virtual std::optional<double> MeanIntervals(uint32_t client, double interval_s) const = 0;
  virtual std::optional<double> MeanSeconds(uint32_t client) const = 0;
};

// "D0 U1 …" in order: the client downloads the current model; its update from there is uploaded.
struct TraceEvent {
  bool download = false;
  uint32_t client = 0;
};
absl::StatusOr<std::vector<TraceEvent>> ParseTraceEvents(const std::string& text, int64_t clients);

}  // namespace tributary::simulate
