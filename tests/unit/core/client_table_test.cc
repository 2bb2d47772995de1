#include "aggregator/core/client_table.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

namespace tributary::aggregator {
namespace {

// Algorithm 2 of the FedAU paper, bit by bit, as algorithms.md §9 writes it.
std::vector<double> BruteForce(const std::string& bits, double cutoff) {
  std::vector<double> omegas;
  double sum = 0, count = 0, miss = 0;
  const auto close = [&](double interval) {
    sum += interval;
    count += 1;
    miss = 0;
  };
  for (const char bit : bits) {
    omegas.push_back(count == 0 ? 1.0 : sum / count);
    if (bit == '1') {
      close(miss + 1);
    } else if (++miss >= cutoff) {
      close(miss);
    }
  }
  return omegas;
}

std::vector<double> Estimated(const std::string& bits, double cutoff) {
  std::vector<double> omegas;
  ClientScalars client;
  for (size_t i = 0; i < bits.size(); ++i) {
    omegas.push_back(MeanInterval(BeforeRound(client, i + 1, cutoff)));
    if (bits[i] == '1') client = AfterContribution(client, i + 1, cutoff, 1);
  }
  return omegas;
}

TEST(ClientTableTest, GivesTheIntervalsOfThePapersExample) {
  const std::vector<double> omegas = Estimated("0001000001101000000000010000", kNoCutoff);
  EXPECT_EQ(omegas[0], 1);
  EXPECT_EQ(omegas[3], 1);
  EXPECT_EQ(omegas[4], 4);
  EXPECT_EQ(omegas[9], 4);
  EXPECT_EQ(omegas[10], 5);
  EXPECT_EQ(omegas[11], 11.0 / 3);
  EXPECT_EQ(omegas[13], 3.25);
  EXPECT_EQ(omegas[23], 3.25);
  EXPECT_EQ(omegas[24], 24.0 / 5);
}

TEST(ClientTableTest, AgreesWithTheBitByBitEstimatorForEveryCutoff) {
  std::mt19937_64 random(17);
  for (const double cutoff : {kNoCutoff, 50.0, 5.0, 3.0, 1.0}) {
    for (int trial = 0; trial < 50; ++trial) {
      std::string bits;
      const unsigned rarity = 1 + static_cast<unsigned>(trial % 12);
      for (int i = 0; i < 300; ++i) bits += random() % rarity == 0 ? '1' : '0';
      EXPECT_EQ(Estimated(bits, cutoff), BruteForce(bits, cutoff)) << "cutoff " << cutoff << ", bits " << bits;
    }
  }
}

TEST(ClientTableTest, ASecondContributionToTheSameRoundIsAnIntervalOfZero) {
  const ClientScalars once = AfterContribution({}, 4, kNoCutoff, 1);
  const ClientScalars twice = AfterContribution(once, 4, kNoCutoff, 1);
  EXPECT_EQ(MeanInterval(twice), 2);  // two contributions in four rounds
}

TEST(ClientTableTest, TheMeanClaimCountsClientsThatHaveClaimed) {
  ClientTable table;
  EXPECT_TRUE(table.Register("a"));
  EXPECT_FALSE(table.Register("a"));
  table.Register("b");
  EXPECT_EQ(table.MeanClaimed("a", 10), 10);
  table.Put("a", {.interval_sum = 0, .interval_count = 0, .since = 0, .claimed = 10});
  EXPECT_EQ(table.MeanClaimed("b", 30), 20);
  EXPECT_EQ(table.MeanClaimed("a", 50), 50);
  EXPECT_EQ(table.size(), 2);
}

}  // namespace
}  // namespace tributary::aggregator
