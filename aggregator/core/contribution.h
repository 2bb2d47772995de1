// One update as the engine, the weight rules and the server step speak of it: whose it is, and every number that came with it.
// Threads: values.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <string>

#include "common/ids.h"
#include "common/moe_stats.h"

namespace tributary::aggregator {

struct UpdateKeyRef {
  std::string client;
  uint64_t task = 0;
  UpdateId update;
  auto operator<=>(const UpdateKeyRef&) const = default;
};

// Numbers of an update besides its weight, by name ("step_norm"): those that its strategy names, and no others.
using Scalars = std::map<std::string, double>;

struct RoundContributor {
  UpdateKeyRef key;
  double weight = 0;          // in the fold
  uint64_t examples = 0;
  uint64_t staleness = 0;     // commits since the version it started from
  double claimed = 0;         // weight as the client sent it
  Scalars scalars{};
  MoeStats moe{};             // of a mixture of experts
};

}  // namespace tributary::aggregator
