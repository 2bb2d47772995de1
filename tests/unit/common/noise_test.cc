#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "common/normal.h"
#include "common/philox.h"
#include "common/random_words.h"
#include "tests/support/status_matchers.h"

namespace tributary {
namespace {

// Random123 1.14, kat_vectors: philox4x32-10.
TEST(PhiloxTest, GivesTheKnownAnswersOfRandom123) {
  const struct {
    PhiloxWords counter;
    uint32_t key[2];
    PhiloxWords expected;
  } rows[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, {0xffffffff, 0xffffffff}, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {0xa4093822, 0x299f31d0}, {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& row : rows) {
    const PhiloxWords words = Philox4x32(row.key[0], row.key[1], row.counter);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(words.word[i], row.expected.word[i]) << i;
  }
}

TEST(PhiloxTest, StagesClientsVersionsAndQuadsDoNotShareWords) {
  const PhiloxStream stream{.seed = 5, .client = 3, .version = 9};
  const PhiloxWords words = stream.Quad(7);
  for (const PhiloxStream& other : {PhiloxStream{.seed = 6, .client = 3, .version = 9}, PhiloxStream{.seed = 5, .client = 4, .version = 9},
                                    PhiloxStream{.seed = 5, .client = 3, .version = 8},
                                    PhiloxStream{.seed = 5, .client = 3, .version = 9, .stage = RandomStage::kRounding}}) {
    EXPECT_NE(other.Quad(7).word[0], words.word[0]);
  }
  EXPECT_NE(stream.Quad(uint64_t{1} << 33 | 7).word[0], words.word[0]);
}

TEST(NormalTest, PolynomialsAgreeWithTheLibrary) {
  for (uint64_t i = 0; i < 200'000; ++i) {
    const auto n = static_cast<uint32_t>(i < 1000 ? i : i < 2000 ? 0xFFFFFFFFu - i : i * 2654435761u);
    const double expected_log = std::log(static_cast<double>(n) + 0.5);
    EXPECT_NEAR(normal_detail::LogOfHalfInteger(n), expected_log, 4e-15 * std::max(1.0, std::abs(expected_log))) << n;
    double sine, cosine;
    normal_detail::SinCosOfTurn(n, &sine, &cosine);
    const double angle = 2 * std::numbers::pi * (static_cast<double>(n) / 4294967296.0);
    EXPECT_NEAR(sine, std::sin(angle), 2e-15) << n;
    EXPECT_NEAR(cosine, std::cos(angle), 2e-15) << n;
  }
}

TEST(NormalTest, PolynomialsInSinglePrecisionAgreeWithTheLibrary) {
  for (uint64_t i = 0; i < 200'000; ++i) {
    const auto n = static_cast<uint32_t>(i < 1000 ? i : i < 2000 ? 0xFFFFFFFFu - i : i * 2654435761u);
    const double unit = (static_cast<double>(static_cast<float>(n)) + 0.5) / 4294967296.0;
    const double expected_log = std::min(0.0, std::log(unit));
    EXPECT_NEAR(normal_detail::LogOfUnit(n), expected_log, 3e-7 * std::max(0.1, std::abs(expected_log))) << n;
    EXPECT_LE(normal_detail::LogOfUnit(n), 0) << n << ": its root is taken";
    float sine, cosine;
    normal_detail::SinCosOfTurn(n, &sine, &cosine);
    const double angle = 2 * std::numbers::pi * (static_cast<double>(n) / 4294967296.0);
    EXPECT_NEAR(sine, std::sin(angle), 1.5e-7) << n;
    EXPECT_NEAR(cosine, std::cos(angle), 1.5e-7) << n;
  }
}

// The 99.9 % point of χ² with 99 degrees of freedom is 148.2. Seeds are fixed, so the test's outcome is too.
void ExpectStandardNormal(const std::vector<double>& samples) {
  double sum = 0, squares = 0;
  std::array<int64_t, 100> counts{};
  for (const double x : samples) {
    sum += x;
    squares += x * x;
    const double share = 0.5 * std::erfc(-x / std::numbers::sqrt2);
    ++counts[std::min<size_t>(99, static_cast<size_t>(share * 100))];
  }
  const double n = static_cast<double>(samples.size());
  EXPECT_LT(std::abs(sum / n), 4 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 1, 3 / std::sqrt(2 * n));
  double chi_square = 0;
  for (const int64_t count : counts) chi_square += (static_cast<double>(count) - n / 100) * (static_cast<double>(count) - n / 100) / (n / 100);
  EXPECT_LT(chi_square, 148.2);
  EXPECT_GT(chi_square, 60.0);  // too even is as wrong as too uneven: the 0.1 % point is 60.7
}

TEST(NoiseTest, MillionSamplesOfPhiloxAreStandardNormal) {
  std::vector<double> samples(1'000'000);
  AddNormals(*MakePhiloxSource({.seed = 42, .client = 1, .version = 1}), 0, 1, samples);
  ExpectStandardNormal(samples);
}

TEST(NoiseTest, MillionSamplesOfChaChaAreStandardNormal) {
  std::vector<double> samples(1'000'000);
  ChaChaKey key{};
  key[3] = std::byte{7};
  AddNormals(*MakeChaChaSource(key), 0, 1, samples);
  ExpectStandardNormal(samples);
}

TEST(NoiseTest, SamplesInSinglePrecisionAreStandardNormalAndNearTheDoubles) {
  std::vector<float> samples(1'000'000, 0.0F);
  AddNormals(*MakePhiloxSource({.seed = 42, .client = 1, .version = 1}), 0, 1, samples);
  const std::vector<double> widened(samples.begin(), samples.end());
  ExpectStandardNormal(widened);
  std::vector<double> doubles(1'000'000);
  AddNormals(*MakePhiloxSource({.seed = 42, .client = 1, .version = 1}), 0, 1, doubles);
  double worst = 0;
  for (size_t i = 0; i < doubles.size(); ++i) worst = std::max(worst, std::abs(doubles[i] - widened[i]));
  EXPECT_LT(worst, 2e-4) << "only a radius near 0 is coarser";
}

// The bits are part of what a seed promises, on every machine.
TEST(NoiseTest, SinglePrecisionHasTheseBits) {
  float normals[4];
  NormalsOf(PhiloxWords{{0, 0, 0xFFFFFFFFu, 0x80000000u}}, normals);
  EXPECT_EQ(std::bit_cast<uint32_t>(normals[0]), std::bit_cast<uint32_t>(std::sqrt(-2.0F * normal_detail::LogOfUnit(0))));
  EXPECT_NEAR(normals[0], std::sqrt(66.0 * std::numbers::ln2), 1e-5);
  EXPECT_EQ(normals[1], 0.0F);
  EXPECT_EQ(normals[2], 0.0F) << "the largest word is 1 in 24 bits, and its radius 0";
  uint64_t hash = 1469598103934665603u;  // FNV-1a
  std::vector<float> samples(4096, 0.0F);
  AddNormals(*MakePhiloxSource({.seed = 7, .client = 2, .version = 3}), 0, 1, samples);
  for (const float x : samples) hash = (hash ^ std::bit_cast<uint32_t>(x)) * 1099511628211u;
  EXPECT_EQ(hash, 12316276116503276575u);
}

TEST(NoiseTest, DoesNotDependOnHowTheVectorIsCut) {
  const ChaChaKey key{};
  for (const bool chacha : {false, true}) {
    const auto source = [&] { return chacha ? MakeChaChaSource(key) : MakePhiloxSource({.seed = 11, .client = 2, .version = 3}); };
    std::vector<float> whole(10'000, 0.25F);
    AddNormals(*source(), 0, 0.7, whole);
    for (const size_t piece : {size_t{1}, size_t{4095}, size_t{7}}) {
      std::vector<float> cut(whole.size(), 0.25F);
      const auto words = source();
      for (size_t first = 0; first < cut.size(); first += piece) {
        AddNormals(*words, first, 0.7, std::span(cut).subspan(first, std::min(piece, cut.size() - first)));
      }
      EXPECT_EQ(cut, whole) << piece;
    }
  }
}

// RFC 8439, section 2.3.2's cipher with key 0, nonce 0, block 0 (appendix A.1, test vector 1).
TEST(NoiseTest, ChaChaGivesTheKnownAnswersOfItsStandard) {
  std::vector<PhiloxWords> quads(4);
  MakeChaChaSource(ChaChaKey{})->Fill(0, quads);
  EXPECT_EQ(quads[0].word[0], 0xade0b876u);
  EXPECT_EQ(quads[0].word[1], 0x903df1a0u);
  EXPECT_EQ(quads[3].word[3], 0x8665eeb2u);
  std::vector<PhiloxWords> later(3);
  MakeChaChaSource(ChaChaKey{})->Fill(1, later);
  EXPECT_EQ(later[0].word[0], quads[1].word[0]);
  EXPECT_EQ(later[2].word[3], quads[3].word[3]);
}

TEST(NoiseTest, KeysOfTheOperatingSystemDiffer) {
  const auto one = SecretKey(), two = SecretKey();
  ASSERT_THAT(one, testing::IsOk());
  ASSERT_THAT(two, testing::IsOk());
  EXPECT_NE(*one, *two);
}

}  // namespace
}  // namespace tributary
