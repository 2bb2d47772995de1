// The rank budget over versions: the schedule's numbers, who stays, and when the pattern is fixed.
#include "aggregator/core/rank_allocator.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>

#include "tests/unit/core/core_test_support.h"

namespace tributary::aggregator {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// moe_lora.md §5.3.
TEST(RankAllocatorTest, TheBudgetFallsAsTheNoteSays) {
  const RankSchedule schedule{.versions = 100, .init_versions = 10, .final_versions = 20, .interval = 10, .target_rank = 0};
  const std::map<int64_t, int64_t> expected = {{0, 48}, {1, 48}, {10, 48}, {11, 47}, {20, 42}, {30, 37}, {40, 34}, {50, 33}, {60, 32}, {79, 32}, {80, 32}, {81, 32}, {100, 32}};
  for (const auto& [t, triplets] : expected) {
    const RankBudget budget = BudgetAt(schedule, 48, 32, t);
    EXPECT_EQ(budget.triplets, triplets) << t;
    EXPECT_EQ(budget.allots, t > 80 || (t > 10 && t % 10 == 0)) << t;
  }
}

TEST(RankAllocatorTest, ABudgetNeverRises) {
  for (const int64_t init : {0, 3}) {
    for (const int64_t final_versions : {0, 4}) {
      const RankSchedule schedule{.versions = 17, .init_versions = init, .final_versions = final_versions, .interval = 1, .target_rank = 0};
      int64_t before = 29;
      for (int64_t t = 0; t <= 17; ++t) {
        const int64_t now = BudgetAt(schedule, 29, 7, t).triplets;
        EXPECT_LE(now, before) << t;
        EXPECT_GE(now, 7) << t;
        before = now;
      }
      EXPECT_EQ(before, 7);
    }
  }
}

// What the original does: all that are at or below the (b₀ − b)-th smallest go, of equal ones too many.
std::vector<bool> AboveThreshold(std::vector<double> scores, size_t count) {
  std::vector<double> sorted = scores;
  std::sort(sorted.begin(), sorted.end());
  std::vector<bool> among(scores.size(), true);
  if (count == scores.size()) return among;
  for (size_t i = 0; i < scores.size(); ++i) among[i] = scores[i] > sorted[scores.size() - count - 1];
  return among;
}

TEST(RankAllocatorTest, TheLargestStayAndOfEqualOnesTheEarlier) {
  const std::vector<double> distinct = RandomValues(40, 5);
  for (size_t count = 0; count <= 40; ++count) EXPECT_EQ(Largest(distinct, count), AboveThreshold(distinct, count)) << count;
  const std::vector<double> equal = {2, 1, 2, 1, 1};
  EXPECT_THAT(Largest(equal, 3), ElementsAre(true, true, true, false, false));
  EXPECT_NE(Largest(equal, 3), AboveThreshold(equal, 3));
  EXPECT_THAT(Largest({}, 0), ElementsAre());
}

// Two layers of ranks 2 and 3, over the versions of a job.
class AllotmentTest : public ::testing::Test {
 protected:
  AllotmentTest() {
    std::vector<TensorSpec> specs;
    for (const auto& [layer, rank] : {std::pair{"fc1", 2}, std::pair{"fc2", 3}}) {
      for (AdapterTensor& tensor : AdapterTensors(AdapterMode::kFedEx, {.layer = layer, .in = 4, .out = 3, .rank = rank, .triplets = true}, DType::kF32)) {
        specs.push_back(std::move(tensor.spec));
      }
    }
    layout_ = LayoutOf(std::move(specs));
    pairs_ = *FindAdapters(AdapterMode::kFedEx, layout_);
    model_ = std::vector<float>(layout_.float_count(), 0.5f);
    for (const AdapterPair& pair : pairs_) Set(pair.mask, std::vector<float>(pair.rank, 1));
  }
  void Set(size_t first, const std::vector<float>& values) { std::copy(values.begin(), values.end(), model_.begin() + static_cast<ptrdiff_t>(first)); }
  void SetImportance(const std::vector<float>& of_both) {
    Set(pairs_[0].importance, {of_both.begin(), of_both.begin() + 2});
    Set(pairs_[1].importance, {of_both.begin() + 2, of_both.end()});
  }
  std::vector<float> Both(size_t AdapterPair::*first) const {
    std::vector<float> values;
    for (const AdapterPair& pair : pairs_) {
      for (size_t l = 0; l < pair.rank; ++l) values.push_back(model_[pair.*first + l]);
    }
    return values;
  }
  double Allot(uint64_t version) {
    std::map<std::string, double> measured;
    const std::vector<float> before = model_;
    std::vector<std::byte> bytes = AsBytes(model_);
    AllotRanks(schedule_, pairs_, layout_, version, bytes, &measured);
    model_ = FromBytes<float>(bytes);
    for (size_t i = 0; i < model_.size(); ++i) {
      bool touched = false;
      for (const AdapterPair& pair : pairs_) touched |= (i >= pair.e && i < pair.e + pair.rank) || (i >= pair.mask && i < pair.mask + pair.rank);
      EXPECT_TRUE(touched || model_[i] == before[i]) << i;
    }
    return measured.at(kAdapterTriplets);
  }
  void TrainAll() {
    for (const AdapterPair& pair : pairs_) Set(pair.e, std::vector<float>(pair.rank, 0.5f));
  }

  RankSchedule schedule_{.versions = 6, .init_versions = 1, .final_versions = 1, .interval = 2, .target_rank = 1};
  TensorLayout layout_;
  std::vector<AdapterPair> pairs_;
  std::vector<float> model_;
};

TEST_F(AllotmentTest, TripletsGoWhenTheirTurnIsMayComeBackAndAreOutForGoodAtTheEnd) {
  SetImportance({5, 1, 4, 2, 3});
  EXPECT_EQ(Allot(1), 5);  // all of them at first
  EXPECT_THAT(Both(&AdapterPair::e), Each(0.5f));
  // 2 + 3·(3/4)³ = 3.27
  EXPECT_EQ(Allot(2), 3);
  EXPECT_THAT(Both(&AdapterPair::e), ElementsAre(0.5f, 0, 0.5f, 0, 0.5f));
  EXPECT_THAT(Both(&AdapterPair::mask), Each(1));
  TrainAll();
  EXPECT_EQ(Allot(3), 5);  // not a version of an allotment: whoever was out trains on
  EXPECT_THAT(Both(&AdapterPair::e), Each(0.5f));
  SetImportance({1, 9, 4, 2, 3});
  EXPECT_EQ(Allot(4), 2);  // 2 + 3·(1/4)³ = 2.05; one of those that were out has come back
  EXPECT_THAT(Both(&AdapterPair::e), ElementsAre(0, 0.5f, 0.5f, 0, 0));
  TrainAll();
  SetImportance({1, 9, 4, 8, 3});
  EXPECT_EQ(Allot(5), 2);  // the pattern is fixed here, though 5 is no multiple of the interval
  EXPECT_THAT(Both(&AdapterPair::e), ElementsAre(0, 0.5f, 0, 0.5f, 0));
  EXPECT_THAT(Both(&AdapterPair::mask), ElementsAre(0, 1, 0, 1, 0));
  TrainAll();
  SetImportance({7, 1, 9, 1, 8});
  EXPECT_EQ(Allot(6), 2);
  EXPECT_THAT(Both(&AdapterPair::e), ElementsAre(0, 0.5f, 0, 0.5f, 0));
}

TEST_F(AllotmentTest, WithoutRegrowthWhoIsOutAtAnAllotmentIsOutForGood) {
  schedule_.regrow = false;
  SetImportance({5, 1, 4, 2, 3});
  EXPECT_EQ(Allot(1), 5);
  EXPECT_THAT(Both(&AdapterPair::mask), Each(1));
  EXPECT_EQ(Allot(2), 3);
  EXPECT_THAT(Both(&AdapterPair::e), ElementsAre(0.5f, 0, 0.5f, 0, 0.5f));
  EXPECT_THAT(Both(&AdapterPair::mask), ElementsAre(1, 0, 1, 0, 1));
  TrainAll();  // whatever a client says
  EXPECT_EQ(Allot(3), 3);
  EXPECT_THAT(Both(&AdapterPair::e), ElementsAre(0.5f, 0, 0.5f, 0, 0.5f));
  SetImportance({-7, 9, 4, 9, 3});
  EXPECT_EQ(Allot(4), 2);
  EXPECT_THAT(Both(&AdapterPair::mask), ElementsAre(0, 0, 1, 0, 1)) << "the most important of those that were in";
  SetImportance({1, 9, 4, 8, -3});
  EXPECT_EQ(Allot(5), 2);
  EXPECT_EQ(Allot(6), 2);
  EXPECT_THAT(Both(&AdapterPair::mask), ElementsAre(0, 0, 1, 0, 1));
}

}  // namespace
}  // namespace tributary::aggregator
