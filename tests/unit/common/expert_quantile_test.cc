#include "common/expert_quantile.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

using ::testing::HasSubstr;

TEST(MarginBinsTest, TileTheNumbersFromMinusToPlusTwoAndAreFinestAtZero) {
  for (const size_t count : {32, 64, 128, 256}) {
    const MarginBins bins(count);
    EXPECT_EQ(bins.Lower(0), -2);
    EXPECT_EQ(bins.Upper(count - 1), 2);
    EXPECT_EQ(bins.Upper(count / 2 - 1), 0);
    EXPECT_EQ(bins.Upper(count / 2), std::ldexp(1.0, -14) * 32 / static_cast<double>(count));
    for (size_t bin = 0; bin < count; ++bin) {
      if (bin > 0) {
        EXPECT_EQ(bins.Lower(bin), bins.Upper(bin - 1));
      }
      EXPECT_LT(bins.Lower(bin), bins.Upper(bin));
      EXPECT_EQ(bins.Bin((bins.Lower(bin) + bins.Upper(bin)) / 2), bin);
      EXPECT_EQ(bins.Bin(bin < count / 2 ? bins.Upper(bin) : bins.Lower(bin)), bin == count / 2 - 1 ? count / 2 : bin) << "the border nearer to 0 is the bin's";
    }
  }
}

TEST(MarginBinsTest, TakeAnyNumber) {
  const MarginBins bins;
  EXPECT_EQ(bins.Bin(1e300), 31u);
  EXPECT_EQ(bins.Bin(std::numeric_limits<double>::infinity()), 31u);
  EXPECT_EQ(bins.Bin(-std::numeric_limits<double>::infinity()), 0u);
  EXPECT_EQ(bins.Bin(-7), 0u);
  EXPECT_EQ(bins.Bin(std::nan("")), 0u);
  EXPECT_EQ(bins.Bin(std::numeric_limits<double>::denorm_min()), 16u);
  EXPECT_EQ(bins.Bin(-0.0), 16u);
}

TEST(MarginBinsTest, AQuantileOfTheHistogramIsInTheBinOfTheExactOne) {
  std::mt19937_64 random(3);
  for (const size_t count : {32, 64, 256}) {
    const MarginBins bins(count);
    for (const double spread : {1e-4, 0.02, 0.5, 3.0}) {  // the last goes beyond the bins
      std::normal_distribution<double> normal(-spread / 3, spread);
      std::vector<double> margins(1500);
      std::vector<int64_t> counts(count);
      for (double& m : margins) ++counts[bins.Bin(m = normal(random))];
      std::sort(margins.begin(), margins.end(), std::greater<double>());
      for (int64_t rank = 1; rank <= 1500; rank += rank < 20 || rank > 1480 ? 1 : 37) {
        const double exact = std::clamp(margins[static_cast<size_t>(rank - 1)], -2.0, 2.0), got = bins.RankLargest(counts, rank);
        EXPECT_EQ(bins.Bin(got), bins.Bin(exact)) << got << " for " << exact << ", rank " << rank << ", spread " << spread;
      }
    }
  }
}

TEST(MarginBinsTest, TheOneMarginOfABinIsPlacedInItsMiddle) {
  const MarginBins bins;
  std::vector<int64_t> counts(32);
  ++counts[31];
  EXPECT_EQ(bins.RankLargest(counts, 1), 1.5);
  ++counts[0];
  EXPECT_EQ(bins.RankLargest(counts, 2), -1.5);
}

TEST(ExpertQuantileRuleTest, ReadsItsParametersByName) {
  const auto of = [](const ParamMap& params) -> absl::StatusOr<ExpertQuantileRule> {
    TRIB_ASSIGN_OR_RETURN(const NamedParams named, NamedParams::Create("router 'quantile'", TRIB_QUANTILE_DEFAULTS, params));
    return ExpertQuantileRule::Of(named);
  };
  TRIB_ASSERT_OK_AND_ASSIGN(const ExpertQuantileRule plain, of({}));
  EXPECT_EQ(plain.rate, 0.5);
  EXPECT_FALSE(plain.global);
  TRIB_ASSERT_OK_AND_ASSIGN(const ExpertQuantileRule global, of({{"scope", "global"}, {"bins", "128"}, {"rate", "1"}}));
  EXPECT_TRUE(global.global);
  EXPECT_EQ(global.bins.bins(), 128u);
  EXPECT_THAT(of({{"bins", "33"}}), testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bins")));
  EXPECT_THAT(of({{"scope", "globl"}}), testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("did you mean 'global'")));
  EXPECT_THAT(of({{"rate", "1.5"}}), testing::StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rate")));
}

}  // namespace
}  // namespace tributary
