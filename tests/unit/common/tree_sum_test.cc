#include "common/tree_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "common/chacha20.h"
#include "common/random_words.h"

namespace tributary {
namespace {

std::vector<float> Draw(size_t count) {
  std::vector<float> values(count);
  AddNormals(*MakePhiloxSource({.seed = 3, .client = 1, .version = 2}), 0, 0.01, values);
  return values;
}

// The header's words as directly as they can be written, one level after the other.
std::vector<double> Level(const std::vector<double>& values) {
  std::vector<double> sums;
  for (size_t tile = 0; tile * 512 < values.size(); ++tile) {
    double lanes[32] = {};
    for (int lane = 0; lane < 32; ++lane) {
      for (int k = 0; k < 4; ++k) {
        for (int j = 0; j < 4; ++j) {
          const size_t at = tile * 512 + 128 * k + 4 * lane + j;
          lanes[lane] += at < values.size() ? values[at] : 0.0;
        }
      }
    }
    for (const int half : {16, 8, 4, 2, 1}) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    sums.push_back(lanes[0]);
  }
  return sums;
}

TEST(TreeSumTest, AddsInTheOrderOfItsHeader) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{5}, size_t{511}, size_t{512}, size_t{513}, size_t{300'001}}) {
    const std::vector<float> values = Draw(count);
    std::vector<double> level;
    for (const float x : values) level.push_back(static_cast<double>(x) * x);
    while (level.size() > 1) level = Level(level);
    EXPECT_EQ(TreeSumOfSquares(std::span<const float>(values)), count == 0 ? 0.0 : level[0]) << count;
  }
}

TEST(TreeSumTest, IsNearerToTheExactSumThanAddingInTurn) {
  const std::vector<float> values = Draw(1'000'000);
  long double exact = 0;
  double in_turn = 0;
  for (const float x : values) {
    exact += static_cast<long double>(x) * x;
    in_turn += static_cast<double>(x) * x;
  }
  const double tree = TreeSumOfSquares(std::span<const float>(values));
  EXPECT_LE(std::abs(tree - static_cast<double>(exact)), std::abs(in_turn - static_cast<double>(exact)));
  EXPECT_NEAR(tree / static_cast<double>(exact), 1, 1e-14);
}

// The GPU's block function against OpenSSL's cipher.
TEST(ChaCha20Test, GivesOpenSslsWords) {
  ChaChaKey key;
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::byte>(31 * i + 5);
  uint32_t words[8];
  std::memcpy(words, key.data(), sizeof(words));
  const auto source = MakeChaChaSource(key);
  for (const uint32_t counter : {0u, 1u, 12'345u, 0x0FFFFFFEu}) {
    std::vector<PhiloxWords> quads(4);
    source->Fill(uint64_t{counter} * 4, quads);
    uint32_t block[16];
    ChaCha20Block(words, counter, block);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(block[i], quads[i / 4].word[i % 4]) << counter << " " << i;
  }
}

}  // namespace
}  // namespace tributary
