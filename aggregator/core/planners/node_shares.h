// How many updates of a round each node brings (dataplane.md §9.1): placement, one update after another, among nodes that still have a
// client to ask. A node without clients left takes no part, whatever its residual capacity; what no node has clients for stays unplaced.
// Pure and deterministic. Threads: values. Errors: those of MakePlacer.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "aggregator/core/planners/placement.h"
#include "common/status.h"

namespace tributary::aggregator {

struct NodeOffer {
  uint32_t node = 0;      // id, unique
  double residual = 0;    // RC, updates
  int64_t clients = 0;    // that could be asked
};

// Updates for each offer, in their order: none more than it has clients.
absl::StatusOr<std::vector<int64_t>> ShareAmongNodes(std::string_view placement, std::span<const NodeOffer> offers, int64_t updates);

}  // namespace tributary::aggregator
