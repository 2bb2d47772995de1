#include "aggregator/core/planners/node_shares.h"

#include <memory>

namespace tributary::aggregator {

absl::StatusOr<std::vector<int64_t>> ShareAmongNodes(std::string_view placement, std::span<const NodeOffer> offers, int64_t updates) {
  std::vector<int64_t> shares(offers.size(), 0);
  std::unique_ptr<Placer> placer;
  for (int64_t placed = 0; placed < updates;) {
    if (placer == nullptr) {  // at first, and whenever a node has run out of clients
      std::vector<PlacementNode> nodes;
      for (size_t i = 0; i < offers.size(); ++i) {
        if (shares[i] < offers[i].clients) nodes.push_back({offers[i].node, offers[i].residual - static_cast<double>(shares[i])});
      }
      if (nodes.empty()) break;
      TRIB_ASSIGN_OR_RETURN(placer, MakePlacer(placement, nodes));
    }
    const Placed to = placer->Place(1);
    for (size_t i = 0; i < offers.size(); ++i) {
      if (offers[i].node != to.node) continue;
      ++placed;
      if (++shares[i] == offers[i].clients) placer.reset();
      break;
    }
  }
  return shares;
}

}  // namespace tributary::aggregator
