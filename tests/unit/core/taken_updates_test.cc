// The updates of one aggregate: by id, by client, in order.
#include "aggregator/core/taken_updates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tributary::aggregator {
namespace {

TakenUpdate Of(const std::string& client, uint64_t id) {
  TakenUpdate update;
  update.contributor.key = {.client = client, .task = id, .update = {.hi = 1, .lo = id}};
  return update;
}

TEST(TakenUpdates, AreFoundByIdAndByClientUntilTheyAreRemoved) {
  TakenUpdates updates;
  updates.Add(Of("a", 1));
  updates.Add(Of("b", 2));
  updates.Add(Of("a", 3));
  EXPECT_EQ(updates.Find({.hi = 1, .lo = 2})->contributor.key.client, "b");
  EXPECT_EQ(updates.Find({.hi = 1, .lo = 4}), nullptr);
  EXPECT_EQ(updates.clients().at("a"), 2u);
  updates.Remove({.hi = 1, .lo = 1});
  EXPECT_TRUE(updates.HasClient("a"));
  updates.Remove({.hi = 1, .lo = 3});
  EXPECT_FALSE(updates.HasClient("a"));
  EXPECT_EQ(updates.size(), 1u);
  EXPECT_EQ(updates.Find({.hi = 1, .lo = 2})->contributor.key.client, "b");
}

TEST(TakenUpdates, CountEachFoldedUpdateOnce) {
  TakenUpdates updates;
  updates.Add(Of("a", 1));
  updates.Add(Of("b", 2));
  updates.MarkFolded({.hi = 1, .lo = 2});
  updates.MarkFolded({.hi = 1, .lo = 2});
  updates.MarkFolded({.hi = 1, .lo = 9});
  EXPECT_EQ(updates.folded(), 1u);
  updates.Remove({.hi = 1, .lo = 2});
  EXPECT_EQ(updates.folded(), 0u);
  EXPECT_EQ(updates.Take().size(), 1u);
  EXPECT_TRUE(updates.empty());
}

}  // namespace
}  // namespace tributary::aggregator
