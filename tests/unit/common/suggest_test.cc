#include "common/suggest.h"

#include <gtest/gtest.h>

#include <vector>

namespace tributary {
namespace {

const std::vector<std::string> kKnown = {"cohort", "codec", "epochs", "lr", "momentum"};

TEST(SuggestTest, FindsOneEditAndSwappedNeighbours) {
  EXPECT_EQ(NearestOf("cohrot", kKnown), "cohort");
  EXPECT_EQ(NearestOf("epoch", kKnown), "epochs");
  EXPECT_EQ(NearestOf("momentun", kKnown), "momentum");
  EXPECT_EQ(DidYouMean("cohrt", kKnown), " (did you mean 'cohort'?)");
}

TEST(SuggestTest, IsSilentWhenNothingIsNear) {
  EXPECT_EQ(NearestOf("privacy", kKnown), "");
  EXPECT_EQ(NearestOf("", kKnown), "");
  EXPECT_EQ(NearestOf("xy", kKnown), "");
  EXPECT_EQ(NearestOf(std::string(100'000, 'c'), kKnown), "");
  EXPECT_EQ(DidYouMean("zzz", {}), "");
}

TEST(SuggestTest, TiesGoToTheFirst) {
  const std::vector<std::string> known = {"batch", "match"};
  EXPECT_EQ(NearestOf("latch", known), "batch");
}

}  // namespace
}  // namespace tributary
