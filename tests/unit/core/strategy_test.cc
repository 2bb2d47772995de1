#include "aggregator/core/strategy.h"

#include <gmock/gmock.h>

#include "aggregator/core/strategy_params.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using tributary::testing::IsOk;
using tributary::testing::StatusIs;

StrategySpec Spec(const std::string& name, ParamMap params = {}) { return {.name = name, .params = std::move(params)}; }

TEST(StrategyRegistryTest, AnUnknownNameNamesTheNearestAndAllKnownOnes) {
  EXPECT_THAT(MakeStrategy(Spec("fedavgg")), StatusIs(absl::StatusCode::kNotFound, AllOf(HasSubstr("'fedavgg'"), HasSubstr("did you mean 'fedavg'"),
                                                                                         HasSubstr("fedavg, fedavgm"))));
  EXPECT_THAT(MakeStrategy(Spec("")), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(FindStrategy("krumm"), nullptr);
}

TEST(StrategyRegistryTest, KeepsTheOrderOfTheTable) {
  ASSERT_GE(Strategies().size(), 2u);
  EXPECT_EQ(Strategies()[0].name, "fedavg");
  EXPECT_EQ(Strategies()[1].name, "fedavgm");
  EXPECT_EQ(FindStrategy("fedavgm"), &Strategies()[1]);
}

TEST(StrategyRegistryTest, AMisspeltParameterNamesTheNearest) {
  EXPECT_THAT(MakeStrategy(Spec("fedavg", {{"sever_lr", "1"}})),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("sever_lr"), HasSubstr("did you mean 'server_lr'"))));
}

TEST(StrategyRegistryTest, RangesAreCheckedAtTheirEnds) {
  for (const char* good : {"1e-9", "1", "100"}) EXPECT_THAT(MakeStrategy(Spec("fedavg", {{"server_lr", good}})), IsOk()) << good;
  for (const char* bad : {"0", "-1", "inf", "nan", "1x"}) {
    EXPECT_THAT(MakeStrategy(Spec("fedavg", {{"server_lr", bad}})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("(0, inf)"))) << bad;
  }
  for (const char* good : {"0", "0.999"}) EXPECT_THAT(MakeStrategy(Spec("fedavgm", {{"beta", good}})), IsOk()) << good;
  for (const char* bad : {"1", "-0.1"}) {
    EXPECT_THAT(MakeStrategy(Spec("fedavgm", {{"beta", bad}})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[0, 1)"))) << bad;
  }
  EXPECT_THAT(MakeStrategy(Spec("fedavg", {{"weighting", "equal"}})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("examples|uniform")));
}

TEST(StrategyRegistryTest, UniformWeightingIgnoresTheClaim) {
  for (const char* name : {"fedavg", "fedavgm"}) {
    const auto by_examples = MakeStrategy(Spec(name));
    const auto uniform = MakeStrategy(Spec(name, {{"weighting", "uniform"}}));
    ASSERT_THAT(by_examples, IsOk());
    ASSERT_THAT(uniform, IsOk());
    EXPECT_EQ(*(*by_examples)->weights().Weight({.client = "a", .claimed = 250}), 250);
    EXPECT_EQ(*(*uniform)->weights().Weight({.client = "a", .claimed = 250}), 1);
  }
}

}  // namespace
}  // namespace tributary::aggregator
