#include "aggregator/core/planners/node_shares.h"

#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using testing::StatusIs;
using Shares = std::vector<int64_t>;

// Three nodes of capacity 20, with more clients than any round asks.
const std::vector<NodeOffer> kThree = {{0, 20, 40}, {1, 20, 40}, {2, 20, 40}};

Shares PlaceOn(std::string_view placement, const std::vector<NodeOffer>& offers, int64_t updates) {
  return ShareAmongNodes(placement, offers, updates).value();
}

TEST(NodeSharesTest, BestFitFillsOneNodeBeforeTheNextAndWorstFitUsesAll) {
  EXPECT_EQ(PlaceOn("bestfit", kThree, 20), (Shares{20, 0, 0}));
  EXPECT_EQ(PlaceOn("worstfit", kThree, 20), (Shares{7, 7, 6}));
  EXPECT_EQ(PlaceOn("bestfit", kThree, 40), (Shares{20, 20, 0}));
  EXPECT_EQ(PlaceOn("bestfit", kThree, 60), (Shares{20, 20, 20}));
  EXPECT_EQ(PlaceOn("worstfit", kThree, 60), (Shares{20, 20, 20}));
  EXPECT_EQ(PlaceOn("bestfit", kThree, 100), (Shares{34, 33, 33})) << "beyond all capacities nobody is turned away";
}

TEST(NodeSharesTest, NobodyIsAskedForMoreThanItHasClientsAndTheRestStaysUnplaced) {
  const std::vector<NodeOffer> offers = {{0, 20, 3}, {4, 20, 0}, {7, 20, 5}};
  EXPECT_EQ(PlaceOn("bestfit", offers, 6), (Shares{3, 0, 3}));
  EXPECT_EQ(PlaceOn("bestfit", offers, 100), (Shares{3, 0, 5}));
  EXPECT_EQ(PlaceOn("worstfit", offers, 0), (Shares{0, 0, 0}));
  EXPECT_EQ(PlaceOn("worstfit", {}, 5), Shares{});
}

TEST(NodeSharesTest, ALoadedNodeIsTheOneThatBestFitFillsUp) {
  EXPECT_EQ(PlaceOn("bestfit", {{0, 20, 40}, {1, 5, 40}}, 7), (Shares{2, 5}));
}

TEST(NodeSharesTest, RefusesAnUnknownPlacement) {
  EXPECT_THAT(ShareAmongNodes("bestfot", kThree, 1), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace tributary::aggregator
