#include "aggregator/core/privacy/accountant.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <vector>

#include "aggregator/core/privacy/fft.h"
#include "aggregator/core/privacy/gaussian.h"
#include "aggregator/core/privacy/rdp.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::tributary::testing::IsOk;
using ::tributary::testing::StatusIs;

// Numbers of dp-accounting 0.6.0 and opacus 1.6.0; tests/golden/privacy_accountants.py makes them and checks them.
const nlohmann::json& Golden() {
  static const nlohmann::json golden = nlohmann::json::parse(std::ifstream(TRIB_GOLDEN "/privacy_accountants.json"));
  return golden;
}

PrivacySpend SpendOf(SamplingEvent sampling, double q, double z, int64_t versions, double delta) {
  const auto accountant = PrivacyAccountant::Create({.sampling = sampling, .sample_rate = q, .noise_multiplier = z}, delta, versions);
  EXPECT_TRUE(accountant.ok()) << accountant.status();
  return (*accountant)->Spend(versions);
}

// The moment is 1 + (α−1)·RDP, and doubles near 1 end at 1e-16: a tiny RDP of a fractional order, where no formula avoids the 1 (opacus'
// does not either), is good to this much absolutely. A million versions of it are an ε of 1e-7.
constexpr double kMomentRounding = 1e-13;

void ExpectRdp(double got, double expected, const std::string& what) {
  EXPECT_LE(std::abs(got - expected), 1e-6 * expected + kMomentRounding) << what << ": got " << got << ", expected " << expected;
}

void ExpectRelative(double got, double expected, double tolerance, const std::string& what) {
  EXPECT_LE(std::abs(got - expected), tolerance * std::abs(expected)) << what << ": got " << got << ", expected " << expected;
}

// ln E_{x ~ N(0, z²)}[((1−q) + q e^{(2x−1)/(2z²)})^α] by the trapezoid rule: shares nothing with the formulas under test. The
// excess over 1 is summed, so that nothing is lost where the moment is next to 1.
double RdpByQuadrature(double q, double z, double alpha) {
  const double step = z / 400;
  const double low = -30 * z, high = 30 * z + alpha + 30;
  double excess = 0;
  for (double x = low; x < high; x += step) {
    const double ratio = std::log1p(q * std::expm1((2 * x - 1) / (2 * z * z)));
    const double density = -x * x / (2 * z * z);
    const double term = alpha * ratio;
    excess += term > 30 ? std::exp(term + density) : std::expm1(term) * std::exp(density);
  }
  return std::log1p(excess * step / (z * std::sqrt(2 * std::numbers::pi))) / (alpha - 1);
}

TEST(RdpTest, PoissonAgreesWithPublishedAccountantsOnEqualOrders) {
  for (const auto& row : Golden()["poisson"]) {
    const double q = row["q"], z = row["z"];
    for (size_t i = 0; i < row["orders"].size(); ++i) {
      const double order = row["orders"][i];
      ExpectRdp(PoissonGaussianRdp(q, z, order), row["rdp"][i], fmt::format("q {} z {} order {}", q, z, order));
    }
    for (size_t i = 0; i < row["integer_orders"].size(); ++i) {
      const double order = row["integer_orders"][i];
      ExpectRelative(PoissonGaussianRdp(q, z, order), row["integer_rdp"][i], 1e-6, fmt::format("q {} z {} integer order {}", q, z, order));
    }
  }
}

TEST(RdpTest, PoissonAgreesWithQuadrature) {
  for (const double q : {1e-4, .01, .1, .7}) {
    for (const double z : {.6, 1.0, 4.0, 10.0}) {
      for (const double order : {1.1, 1.5, 2.0, 3.7, 8.0, 10.9, 24.0}) {
        ExpectRdp(PoissonGaussianRdp(q, z, order), RdpByQuadrature(q, z, order), fmt::format("q {} z {} order {}", q, z, order));
      }
    }
  }
}

TEST(RdpTest, FixedSizeAndTreeAgreeWithPublishedAccountants) {
  for (const auto& row : Golden()["fixed_size"]) {
    for (size_t i = 0; i < row["orders"].size(); ++i) {
      // Its differences lose their digits at high orders with much noise: 0.159 where exact arithmetic gives 0.1195, see below.
      if (row["orders"][i] > 63) continue;
      ExpectRelative(FixedSizeGaussianRdp(row["q"], row["z"], row["orders"][i]), row["rdp"][i], 1e-6, row.dump().substr(0, 60) + row["orders"][i].dump());
    }
  }
  // Theorem 27 evaluated with 400 decimal digits.
  ExpectRelative(FixedSizeGaussianRdp(.25, 8, 128), 0.119547589764349, 1e-12, "order 128 at q .25, z 8");
  ExpectRelative(FixedSizeGaussianRdp(.1, 4, 128), 1.68838871928917, 1e-12, "order 128 at q .1, z 4");
  ExpectRelative(FixedSizeGaussianRdp(.1, 4, 63), 0.0597187401373895, 1e-12, "order 63 at q .1, z 4");
  for (const auto& row : Golden()["tree"]) {
    for (size_t i = 0; i < row["orders"].size(); ++i) {
      ExpectRelative(TreeGaussianRdp(row["z"], row["versions"], row["orders"][i]), row["rdp"][i], 1e-12, row["orders"][i].dump());
    }
  }
}

TEST(PrivacyAccountantTest, ReproducesTheTableOfTheDesign) {
  const struct {
    double q, z;
    int64_t versions;
    double delta, rdp, pld;
  } rows[] = {{.01, 1, 1000, 1e-5, 2.10137, 1.82824}, {.1, 4, 1000, 1e-5, 3.73624, 3.44434}, {.001, 1, 10000, 1e-6, .97954, .55539}};
  for (const auto& row : rows) {
    const PrivacySpend spend = SpendOf(SamplingEvent::kPoisson, row.q, row.z, row.versions, row.delta);
    EXPECT_NEAR(spend.rdp, row.rdp, 6e-6);
    EXPECT_NEAR(*spend.pld, row.pld, 6e-6);
  }
}

TEST(PrivacyAccountantTest, EpsilonAgreesWithPublishedAccountants) {
  for (const auto& row : Golden()["poisson"]) {
    const PrivacySpend spend = SpendOf(SamplingEvent::kPoisson, row["q"], row["z"], row["versions"], row["delta"]);
    ExpectRelative(spend.rdp, row["epsilon_rdp"], 5e-3, "RDP");
    ExpectRelative(*spend.pld, row["epsilon_pld"], 1e-3, "PLD");
  }
  for (const auto& row : Golden()["full"]) {
    const PrivacySpend spend = SpendOf(SamplingEvent::kPoisson, 1, row["z"], row["versions"], row["delta"]);
    ExpectRelative(spend.rdp, row["epsilon_rdp"], 5e-3, "RDP, everybody");
    ExpectRelative(*spend.pld, row["epsilon_pld"], 1e-3, "PLD, everybody");
  }
  for (const auto& row : Golden()["fixed_size"]) {
    const PrivacySpend spend = SpendOf(SamplingEvent::kFixedSize, row["q"], row["z"], row["versions"], row["delta"]);
    ExpectRelative(spend.rdp, row["epsilon_rdp"], 5e-3, "fixed size");
    EXPECT_FALSE(spend.pld.has_value());
  }
  for (const auto& row : Golden()["tree"]) {
    ExpectRelative(SpendOf(SamplingEvent::kTree, 1, row["z"], row["versions"], row["delta"]).rdp, row["epsilon_rdp"], 5e-3, "tree");
  }
}

TEST(PrivacyAccountantTest, FixedSizeCostsMoreThanPoissonAtTheSameMultiplier) {
  EXPECT_GT(SpendOf(SamplingEvent::kFixedSize, .05, 2, 100, 1e-5).epsilon(), 1.5 * SpendOf(SamplingEvent::kPoisson, .05, 2, 100, 1e-5).epsilon());
}

TEST(PrivacyAccountantTest, SpendOfFewerVersionsIsThatOfAnAccountantMadeForThem) {
  const auto many = PrivacyAccountant::Create({.sample_rate = .05, .noise_multiplier = 1.2}, 1e-5, 2000);
  ASSERT_THAT(many, IsOk());
  double before = 0;
  for (const int64_t versions : {1, 2, 7, 40, 300, 2000}) {
    const double epsilon = (*many)->Spend(versions).epsilon();
    ExpectRelative(epsilon, SpendOf(SamplingEvent::kPoisson, .05, 1.2, versions, 1e-5).epsilon(), 1e-6, fmt::format("{} versions", versions));
    EXPECT_GT(epsilon, before);
    before = epsilon;
  }
  EXPECT_EQ((*many)->Spend(0).epsilon(), 0);
}

TEST(PrivacyAccountantTest, BudgetPaysForTheVersionsBelowItAndNotForOneMore) {
  const auto accountant = PrivacyAccountant::Create({.sample_rate = .05, .noise_multiplier = 1.2}, 1e-5, 500);
  ASSERT_THAT(accountant, IsOk());
  const int64_t affordable = (*accountant)->AffordableVersions(1.5);
  ASSERT_GT(affordable, 0);
  ASSERT_LT(affordable, 500);
  EXPECT_LE((*accountant)->Spend(affordable).epsilon(), 1.5);
  EXPECT_GT((*accountant)->Spend(affordable + 1).epsilon(), 1.5);
  EXPECT_EQ((*accountant)->AffordableVersions(1e9), 500);
}

TEST(PrivacyAccountantTest, CalibrationAndBackGivesTheSameNoise) {
  const struct {
    SamplingEvent sampling;
    double q, z;
    int64_t versions;
    Accounting accounting;
  } rows[] = {{SamplingEvent::kPoisson, .01, 1, 1000, Accounting::kPld},  {SamplingEvent::kPoisson, .01, 1, 1000, Accounting::kRdp},
              {SamplingEvent::kPoisson, .3, 3, 40, Accounting::kPld},     {SamplingEvent::kPoisson, 1, 5, 20, Accounting::kPld},
              {SamplingEvent::kFixedSize, .05, 3, 50, Accounting::kRdp},  {SamplingEvent::kTree, 1, 6, 100, Accounting::kRdp}};
  for (const auto& row : rows) {
    const PrivacySpend spend = SpendOf(row.sampling, row.q, row.z, row.versions, 1e-5);
    const double epsilon = row.accounting == Accounting::kRdp ? spend.rdp : *spend.pld;
    const auto noise = CalibrateNoise({.sampling = row.sampling, .sample_rate = row.q}, 1e-5, row.versions, epsilon, row.accounting);
    ASSERT_THAT(noise, IsOk());
    ExpectRelative(*noise, row.z, 1e-4, "noise");
    const PrivacySpend again = SpendOf(row.sampling, row.q, *noise, row.versions, 1e-5);
    EXPECT_LE(row.accounting == Accounting::kRdp ? again.rdp : *again.pld, epsilon * (1 + 1e-9));
  }
}

TEST(PrivacyAccountantTest, RefusesWhatItCannotAccountFor) {
  const PrivacyEvent good{.sample_rate = .1, .noise_multiplier = 1};
  EXPECT_THAT(PrivacyAccountant::Create({.sample_rate = 0, .noise_multiplier = 1}, 1e-5, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("sample rate")));
  EXPECT_THAT(PrivacyAccountant::Create({.sample_rate = 1.5, .noise_multiplier = 1}, 1e-5, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("(0, 1]")));
  EXPECT_THAT(PrivacyAccountant::Create({.noise_multiplier = 0}, 1e-5, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("noise multiplier")));
  EXPECT_THAT(PrivacyAccountant::Create(good, 0, 1), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("delta")));
  EXPECT_THAT(PrivacyAccountant::Create(good, 1e-5, 0), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("versions")));
  EXPECT_THAT(CalibrateNoise({.sampling = SamplingEvent::kFixedSize, .sample_rate = .1}, 1e-5, 10, 1, Accounting::kPld),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("no privacy loss distribution")));
  EXPECT_THAT(CalibrateNoise(good, 1e-5, 10, 0, Accounting::kPld),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("epsilon")));
}

TEST(GaussianTest, ClosedFormsInvertEachOther) {
  for (const double mu : {.01, .3, 1.0, 5.0, 40.0}) {
    for (const double delta : {1e-3, 1e-6, 1e-12}) {
      const double epsilon = GaussianEpsilon(mu, delta);
      if (epsilon > 0) ExpectRelative(GaussianDelta(mu, epsilon), delta, 1e-6, fmt::format("mu {} delta {}", mu, delta));
    }
  }
  const double noise = AnalyticGaussianNoise(1, 1e-5);
  ExpectRelative(noise, 3.730631634816, 1e-9, "analytic mechanism at (1, 1e-5)");
  EXPECT_LT(noise, std::sqrt(2 * std::log(1.25 / 1e-5)));  // the classic bound is looser
}

TEST(FftTest, AgreesWithTheDefinitionAndInverts) {
  std::vector<std::complex<double>> x;
  for (int i = 0; i < 64; ++i) x.emplace_back(std::cos(1.7 * i), std::sin(.3 * i * i));
  std::vector<std::complex<double>> transformed = x;
  Fft(transformed);
  for (int k = 0; k < 64; ++k) {
    std::complex<double> sum;
    for (int n = 0; n < 64; ++n) sum += x[n] * std::polar(1.0, -2 * std::numbers::pi * k * n / 64);
    EXPECT_LT(std::abs(sum - transformed[k]), 1e-12);
  }
  InverseFft(transformed);
  for (int n = 0; n < 64; ++n) EXPECT_LT(std::abs(transformed[n] - x[n]), 1e-14);
}

}  // namespace
}  // namespace tributary::aggregator
