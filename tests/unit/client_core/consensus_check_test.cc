// When RERCE-Fed warns.
#include "client/core/consensus_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace tributary::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ConsensusCheckTest, FindsTheSmallestEigenvalueOfTheRange) {
  // Rotated diag(5, 2, 0) and diag(3); a 2 × 2 matrix with eigenvalues (7 ± √17)/2.
  const double c = std::cos(0.7), s = std::sin(0.7);
  EXPECT_NEAR(SmallestPositiveEigenvalue({5 * c * c, 0, 5 * c * s, 0, 2, 0, 5 * c * s, 0, 5 * s * s}, 3), 2, 1e-12);
  EXPECT_NEAR(SmallestPositiveEigenvalue({3, 2, 2, 4}, 2), (7 - std::sqrt(17.0)) / 2, 1e-12);
  EXPECT_EQ(SmallestPositiveEigenvalue({0}, 1), 0);
}

TEST(ConsensusCheckTest, WarnsOfPartialRoundsAndNoisyLinksWhereTheHessianIsNotLarge) {
  const auto problems = [](double a) {
    std::vector<std::shared_ptr<const AnalyticProblem>> made;
    for (int i = 0; i < 3; ++i) {
      ProblemTensors tensors;
      tensors["A"] = {.shape = {1, 1}, .values = {a}};
      tensors["b"] = {.shape = {1}, .values = {1}};
      made.push_back(*MakeAnalyticProblem("quadratic", {}, std::move(tensors), "file"));
    }
    return made;
  };
  JobSpec spec;
  spec.strategy.name = "rerce_admm";
  spec.cohort.size = 3;
  EXPECT_THAT(ConsensusWarnings(spec, problems(1)), ::testing::IsEmpty());
  spec.cohort.size = 2;
  EXPECT_THAT(ConsensusWarnings(spec, problems(1)), ElementsAre(HasSubstr("fewer than all 3 clients")));
  EXPECT_THAT(ConsensusWarnings(spec, problems(1e4)), ::testing::IsEmpty());
  spec.simulate.channel.downlink_var = 0.1;
  EXPECT_THAT(ConsensusWarnings(spec, problems(1)), ElementsAre(HasSubstr("random walk"), HasSubstr("is 0.5")));
  spec.strategy.name = "fedadmm";
  EXPECT_THAT(ConsensusWarnings(spec, problems(1)), ::testing::IsEmpty());
}

}  // namespace
}  // namespace tributary::client
