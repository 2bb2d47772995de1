// The mixture-of-experts kernels against their references in client/core/moe: equal bits, on random shapes and awkward ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "client/core/moe/dispatch.h"
#include "client/core/moe/moe_math.h"
#include "client/core/random.h"
#include "client/cuda/column_select.h"
#include "client/cuda/moe_permute.h"
#include "client/cuda/router_topk.h"
#include "tests/support/gpu.h"

namespace tributary::client {
namespace {

using ::tributary::testing::GpuMissing;
using ::tributary::testing::OnDevice;
using ::tributary::testing::ToDevice;
using ::tributary::testing::ToHost;

std::vector<float> NormalFloats(size_t count, uint64_t seed) {
  CounterRandom random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.Normal());
  return values;
}

struct Shape {
  size_t tokens, experts, top_k;
};
const Shape kShapes[] = {{1, 1, 1}, {7, 4, 4}, {1000, 8, 2}, {4097, 64, 8}, {333, 33, 3}, {5000, 256, 8}, {129, 160, 6}};

// Rows with ties, what is not a number, infinities and far-out logits.
std::vector<float> Logits(const Shape& shape) {
  std::vector<float> logits = NormalFloats(shape.tokens * shape.experts, shape.tokens + shape.experts);
  const auto fill = [&](size_t row, float value) {
    if (row < shape.tokens) std::fill_n(logits.begin() + static_cast<std::ptrdiff_t>(row * shape.experts), shape.experts, value);
  };
  fill(3, 0.5F);
  fill(5, std::numeric_limits<float>::quiet_NaN());
  if (shape.tokens > 20) {
    logits[10 * shape.experts] = std::numeric_limits<float>::quiet_NaN();
    logits[11 * shape.experts + shape.experts - 1] = std::numeric_limits<float>::infinity();
    logits[12 * shape.experts] = -std::numeric_limits<float>::infinity();
    logits[13 * shape.experts + shape.experts / 2] = 5000;
    logits[14 * shape.experts] = -5000;
  }
  return logits;
}

uint32_t Bits(float value) { return std::isnan(value) ? 0x7FC00000u : std::bit_cast<uint32_t>(value); }

TEST(CudaRouterTest, ChoosesGatesAndCountsAsTheReferenceDoes) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  for (const Shape& shape : kShapes) {
    const std::vector<float> logits = Logits(shape);
    for (const Score score : {Score::kSoftmax, Score::kSigmoid}) {
      for (const bool biased : {false, true}) {
        const std::vector<float> bias = biased ? NormalFloats(shape.experts, 4) : std::vector<float>();
        const auto device_logits = ToDevice(logits), device_bias = ToDevice(bias);
        const auto scores = OnDevice<float>(logits.size()), gates = OnDevice<float>(shape.tokens * shape.top_k), threshold = OnDevice<float>(shape.tokens);
        const auto chosen = OnDevice<int32_t>(shape.tokens * shape.top_k), counts = OnDevice<int32_t>(shape.experts, 0);
        const RouterTopK work{.logits = device_logits.get(), .bias = biased ? device_bias.get() : nullptr, .tokens = static_cast<int64_t>(shape.tokens),
                              .experts = static_cast<int>(shape.experts), .top_k = static_cast<int>(shape.top_k), .sigmoid = score == Score::kSigmoid,
                              .scores = scores.get(), .chosen = chosen.get(), .gates = gates.get(), .threshold = threshold.get(), .counts = counts.get()};
        ASSERT_EQ(LaunchRouterTopK(work, nullptr), cudaSuccess);
        const std::string where = fmt::format("{} tokens, {} experts, {} each, score {}, bias {}", shape.tokens, shape.experts, shape.top_k, static_cast<int>(score), biased);

        const std::vector<float> expected_scores = Scores(logits, shape.experts, score), got_scores = ToHost(scores, logits.size());
        for (size_t i = 0; i < logits.size(); ++i) ASSERT_EQ(Bits(got_scores[i]), Bits(expected_scores[i])) << where << ", score " << i;
        const Selection expected = SelectTopK(expected_scores, bias, shape.experts, shape.top_k);
        const std::vector<int32_t> got_chosen = ToHost(chosen, shape.tokens * shape.top_k);
        const Selection got = SelectionOf(got_chosen, shape.tokens, shape.experts, shape.top_k);
        ASSERT_EQ(got.offsets, expected.offsets) << where;
        ASSERT_EQ(got.token, expected.token) << where;
        const std::vector<int32_t> got_counts = ToHost(counts, shape.experts);
        for (size_t j = 0; j < shape.experts; ++j) ASSERT_EQ(got_counts[j], expected.Counts()[j]) << where;
        const std::vector<float> expected_gates = Gates(expected, logits, expected_scores, GateRule::kRenormalised, GateShape::kLinear);
        const std::vector<float> got_gates = ToHost(gates, shape.tokens * shape.top_k);
        const std::vector<int32_t> place = PlacesOf(expected, got_chosen, shape.top_k);
        for (size_t i = 0; i < place.size(); ++i) ASSERT_EQ(Bits(got_gates[i]), Bits(expected_gates[static_cast<size_t>(place[i])])) << where << ", choice " << i;
        if (shape.top_k == shape.experts) continue;
        const std::vector<float> got_threshold = ToHost(threshold, shape.tokens);
        std::vector<float> row(shape.experts), scratch;
        for (size_t n = 0; n < shape.tokens; ++n) {
          for (size_t j = 0; j < shape.experts; ++j) row[j] = expected_scores[n * shape.experts + j] + (biased ? bias[j] : 0.0F);
          ASSERT_EQ(got_threshold[n], RankLargest(row, shape.top_k + 1, scratch)) << where << ", token " << n;
        }
      }
    }
  }
}

TEST(CudaMoePermuteTest, DispatchesGathersAndCombinesAsTheReferenceDoes) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  constexpr size_t kWidth = 20;
  for (const Shape& shape : kShapes) {
    CounterRandom random(shape.tokens);
    // Expert 0 stays empty where there are others left, so that an empty expert is among them.
    std::vector<int32_t> chosen;
    for (size_t n = 0; n < shape.tokens; ++n) {
      std::vector<int32_t> order(shape.experts);
      for (size_t j = 0; j < shape.experts; ++j) order[j] = static_cast<int32_t>(j);
      if (shape.top_k < shape.experts) order.erase(order.begin());
      random.Shuffle(order);
      chosen.insert(chosen.end(), order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shape.top_k));
    }
    const Selection expected = SelectionOf(chosen, shape.tokens, shape.experts, shape.top_k);
    std::vector<int32_t> counts;
    for (const int64_t count : expected.Counts()) counts.push_back(static_cast<int32_t>(count));
    const auto device_chosen = ToDevice(chosen), device_counts = ToDevice(counts), place = OnDevice<int32_t>(chosen.size());
    const auto token = OnDevice<int64_t>(chosen.size()), offsets = OnDevice<int64_t>(shape.experts + 1);
    const MoeDispatch work{.chosen = device_chosen.get(), .counts = device_counts.get(), .tokens = static_cast<int64_t>(shape.tokens),
                           .experts = static_cast<int>(shape.experts), .top_k = static_cast<int>(shape.top_k), .token = token.get(), .offsets = offsets.get(), .place = place.get()};
    ASSERT_EQ(LaunchMoeDispatch(work, nullptr), cudaSuccess);
    EXPECT_EQ(ToHost(offsets, shape.experts + 1), expected.offsets);
    EXPECT_EQ(ToHost(token, chosen.size()), expected.token);
    const std::vector<int32_t> places = PlacesOf(expected, chosen, shape.top_k);
    EXPECT_EQ(ToHost(place, chosen.size()), places);

    const std::vector<float> x = NormalFloats(shape.tokens * kWidth, 3), gates = NormalFloats(chosen.size(), 5);
    const auto device_x = ToDevice(x), device_gates = ToDevice(gates), gathered = OnDevice<float>(chosen.size() * kWidth), out = OnDevice<float>(x.size());
    ASSERT_EQ(LaunchMoeGather(device_x.get(), token.get(), static_cast<int64_t>(chosen.size()), kWidth * sizeof(float), gathered.get(), nullptr), cudaSuccess);
    const std::vector<float> expected_rows = GatherTokens(expected, x, kWidth);
    EXPECT_EQ(ToHost(gathered, expected_rows.size()), expected_rows);
    const MoeCombine combine{.y = gathered.get(), .gates = device_gates.get(), .place = place.get(), .tokens = static_cast<int64_t>(shape.tokens),
                             .top_k = static_cast<int>(shape.top_k), .width = kWidth, .out = out.get()};
    ASSERT_EQ(LaunchMoeCombine(combine, nullptr), cudaSuccess);
    EXPECT_EQ(ToHost(out, x.size()), CombineExperts(expected_rows, gates, places, shape.top_k, kWidth));

    const std::vector<float> dout = NormalFloats(x.size(), 9);
    const auto device_dout = ToDevice(dout), dy = OnDevice<float>(expected_rows.size()), dgates = OnDevice<float>(gates.size());
    const MoeCombineBackward backward{.dout = device_dout.get(), .y = gathered.get(), .gates = device_gates.get(), .place = place.get(),
                                      .tokens = static_cast<int64_t>(shape.tokens), .top_k = static_cast<int>(shape.top_k), .width = kWidth, .dy = dy.get(), .dgates = dgates.get()};
    ASSERT_EQ(LaunchMoeCombineBackward(backward, nullptr), cudaSuccess);
    const CombineGradient expected_gradient = CombineBackward(dout, expected_rows, gates, places, shape.top_k, kWidth);
    EXPECT_EQ(ToHost(dy, expected_rows.size()), expected_gradient.dy);
    EXPECT_EQ(ToHost(dgates, gates.size()), expected_gradient.dgates);
  }
}

// bfloat16 rows are those of their numbers in single precision, rounded at the end.
TEST(CudaMoePermuteTest, CombinesRowsOfBfloat16) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const auto rounded = [](const std::vector<float>& values) {
    std::vector<uint16_t> bits;
    for (const float value : values) {
      const auto raw = std::bit_cast<uint32_t>(value);
      bits.push_back(static_cast<uint16_t>((raw + 0x7FFF + (raw >> 16 & 1)) >> 16));
    }
    return bits;
  };
  const auto widened = [](const std::vector<uint16_t>& bits) {
    std::vector<float> values;
    for (const uint16_t b : bits) values.push_back(std::bit_cast<float>(uint32_t{b} << 16));
    return values;
  };
  constexpr size_t kTokens = 50, kTopK = 2, kWidth = 72;
  std::vector<int32_t> place(kTokens * kTopK);
  for (size_t i = 0; i < place.size(); ++i) place[i] = static_cast<int32_t>((i * 37) % place.size());
  const std::vector<uint16_t> y = rounded(NormalFloats(place.size() * kWidth, 1)), dout = rounded(NormalFloats(kTokens * kWidth, 2));
  const std::vector<float> gates = NormalFloats(place.size(), 3);
  const auto device_y = ToDevice(y), device_dout = ToDevice(dout), out = OnDevice<uint16_t>(kTokens * kWidth), dy = OnDevice<uint16_t>(y.size());
  const auto device_gates = ToDevice(gates), dgates = OnDevice<float>(gates.size());
  const auto device_place = ToDevice(place);
  ASSERT_EQ(LaunchMoeCombine({.type = RowType::kBf16, .y = device_y.get(), .gates = device_gates.get(), .place = device_place.get(), .tokens = kTokens, .top_k = kTopK,
                              .width = kWidth, .out = out.get()}, nullptr), cudaSuccess);
  EXPECT_EQ(ToHost(out, kTokens * kWidth), rounded(CombineExperts(widened(y), gates, place, kTopK, kWidth)));
  ASSERT_EQ(LaunchMoeCombineBackward({.type = RowType::kBf16, .dout = device_dout.get(), .y = device_y.get(), .gates = device_gates.get(), .place = device_place.get(),
                                      .tokens = kTokens, .top_k = kTopK, .width = kWidth, .dy = dy.get(), .dgates = dgates.get()}, nullptr), cudaSuccess);
  const CombineGradient expected = CombineBackward(widened(dout), widened(y), gates, place, kTopK, kWidth);
  EXPECT_EQ(ToHost(dy, y.size()), rounded(expected.dy));
  EXPECT_EQ(ToHost(dgates, gates.size()), expected.dgates);
}

TEST(CudaColumnSelectTest, FindsTheRankOfEachColumn) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  for (const Shape& shape : kShapes) {
    std::vector<float> scores = Logits(shape);
    if (shape.tokens > 100) {
      for (size_t n = 40; n < 80; ++n) scores[n * shape.experts] = 0.25F;  // ties over the rank
    }
    const std::vector<float> bias = NormalFloats(shape.experts, 7), offset = NormalFloats(shape.tokens, 8);
    const auto device_scores = ToDevice(scores), device_bias = ToDevice(bias), device_offset = ToDevice(offset);
    for (const size_t rank : {size_t{1}, (shape.tokens + 1) / 2, shape.tokens}) {
      for (const bool plain : {true, false}) {
        const auto selected = OnDevice<float>(shape.experts);
        const ColumnSelect work{.scores = device_scores.get(), .bias = plain ? nullptr : device_bias.get(), .offset = plain ? nullptr : device_offset.get(),
                                .tokens = static_cast<int64_t>(shape.tokens), .experts = static_cast<int>(shape.experts), .rank = static_cast<int64_t>(rank), .selected = selected.get()};
        ASSERT_EQ(LaunchColumnSelect(work, nullptr), cudaSuccess);
        const std::vector<float> got = ToHost(selected, shape.experts);
        std::vector<float> column(shape.tokens), scratch;
        for (size_t j = 0; j < shape.experts; ++j) {
          for (size_t n = 0; n < shape.tokens; ++n) column[n] = plain ? scores[n * shape.experts + j] : scores[n * shape.experts + j] + bias[j] - offset[n];
          ASSERT_EQ(got[j], RankLargest(column, rank, scratch)) << shape.tokens << " tokens, rank " << rank << ", expert " << j;
        }
      }
    }
  }
}

TEST(CudaMoeTest, SizesOutOfRangeAreRefused) {
  TRIB_REQUIRE_OR_SKIP("gpu", GpuMissing());
  const auto some = OnDevice<float>(1024, 0);
  const auto numbers = OnDevice<int32_t>(1024, 0);
  RouterTopK router{.logits = some.get(), .tokens = 1, .experts = 257, .top_k = 1, .chosen = numbers.get(), .gates = some.get(), .counts = numbers.get()};
  EXPECT_EQ(LaunchRouterTopK(router, nullptr), cudaErrorInvalidValue);
  router.experts = 4;
  router.top_k = 5;
  EXPECT_EQ(LaunchRouterTopK(router, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchMoeGather(some.get(), nullptr, 1, 12, some.get(), nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchColumnSelect({.scores = some.get(), .tokens = 4, .experts = 1, .rank = 5, .selected = some.get()}, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace tributary::client
