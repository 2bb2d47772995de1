// Who takes part in which round (algorithms.md §4, `simulate.participation`). Deterministic in (spec, clients, seed).
//
//   all        everybody                     fixed      `size` of them, drawn anew each round
//   bernoulli  client i with probability p_i  trace      as listed
//   markov     off → on with a, on → off with e = a(1/p − 1), a = max_transition; if e > 1 then a ← a/e, e ← 1; starts with probability p
//   cyclic     max(1, round(period·p)) rounds of every `period`, from a random phase
// Threads: thread-compatible; rounds must be asked for in order from 0. Errors: INVALID_ARGUMENT naming the key, expected and got.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/simulate_spec.h"
#include "common/status.h"

namespace tributary::simulate {

class Availability {
 public:
  static absl::StatusOr<std::unique_ptr<Availability>> Make(const ParticipationSpec& spec, int64_t clients, uint64_t seed);
  virtual ~Availability() = default;
  // The clients of the next round, ascending; valid until the next call. May be empty.
  virtual std::span<const uint32_t> NextRound() = 0;
  // Long-run share of rounds of each client.
  virtual std::vector<double> Shares() const = 0;
};

// value[i], where a list of one stands for everybody. INVALID_ARGUMENT for another length than 1 or `clients`.
absl::StatusOr<std::vector<double>> ForEachClient(const std::vector<double>& values, int64_t clients, std::string_view key);

}  // namespace tributary::simulate
