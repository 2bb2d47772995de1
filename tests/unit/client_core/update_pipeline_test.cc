#include "client/core/update_pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "client/core/quantise.h"
#include "client/core/random.h"
#include "tests/support/status_matchers.h"

namespace tributary::client {
namespace {

using ::tributary::testing::IsOk;
using ::tributary::testing::StatusIs;

constexpr Codec kCoded[] = {Codec::kBf16, Codec::kF16, Codec::kInt8, Codec::kInt4, Codec::kTopK};

TensorLayout LayoutOf(int64_t trainable, int64_t buffers = 0, int64_t counters = 0, DType dtype = DType::kF32) {
  std::vector<TensorSpec> specs = {{.name = "w", .shape = {trainable}, .dtype = dtype}};
  if (buffers > 0) specs.push_back({.name = "running", .shape = {buffers}, .dtype = dtype, .kind = TensorKind::kBuffer});
  if (counters > 0) specs.push_back({.name = "batches", .shape = {counters}, .dtype = DType::kI64, .kind = TensorKind::kCounter});
  return *TensorLayout::Create(std::move(specs));
}

template <typename T>
LargeBytes Flat(const TensorLayout& layout, const std::vector<T>& values) {
  LargeBytes flat(layout.total_bytes());
  std::memset(flat.data(), 0, flat.size());
  std::memcpy(flat.data(), values.data(), values.size() * sizeof(T));
  return flat;
}

std::vector<float> Normals(size_t count, uint64_t seed) {
  CounterRandom random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.Normal() * 0.01);
  return values;
}

std::vector<float> Decoded(const UpdateEncoding& encoding, const LargeBytes& bytes) {
  std::vector<float> values(encoding.floats);
  DecodeRange(encoding, bytes.data(), 0, values);
  return values;
}

double Norm(const std::vector<float>& values) {
  double sum = 0;
  for (const float x : values) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

TEST(UpdatePipelineTest, PiecesOfAnySizeGiveEqualBytesForEveryCodec) {
  const TensorLayout layout = LayoutOf(20'001, 3, 2);
  const std::vector<float> values = Normals(20'004, 3);
  for (const Codec codec : {Codec::kPlain, Codec::kBf16, Codec::kF16, Codec::kInt8, Codec::kInt4, Codec::kTopK}) {
    LargeBytes expected;
    for (const size_t piece : {size_t{1} << 20, size_t{1}, size_t{4095}}) {
      const auto noise = MakePhiloxSource({.seed = 8, .client = 4, .version = 2});
      const PipelineOptions options{.encoding = UpdateEncoding::Of(codec, 0.01, layout), .clip = 0.5, .noise_stddev = 0.003, .noise = noise.get(),
                                    .rounding = {.seed = 8, .client = 4, .version = 2, .stage = RandomStage::kRounding}, .piece_elements = piece};
      const auto result = EncodeUpdate(options, Flat(layout, values), {});
      ASSERT_THAT(result, IsOk());
      ASSERT_EQ(result->bytes.size(), options.encoding.total_bytes());
      if (expected.empty()) expected = result->bytes;
      EXPECT_EQ(result->bytes, expected) << "codec " << static_cast<int>(codec) << ", pieces of " << piece;
    }
  }
}

TEST(UpdatePipelineTest, ClipsToTheNormAndLeavesShorterUpdatesAlone) {
  const TensorLayout layout = LayoutOf(10'000);
  const std::vector<float> values = Normals(10'000, 5);
  const double norm = Norm(values);
  const UpdateEncoding plain = UpdateEncoding::Of(Codec::kPlain, 0, layout);
  const auto clipped = EncodeUpdate({.encoding = plain, .clip = norm / 3}, Flat(layout, values), {});
  ASSERT_THAT(clipped, IsOk());
  EXPECT_NEAR(clipped->norm, norm, 1e-12);
  EXPECT_LE(Norm(Decoded(plain, clipped->bytes)), norm / 3 * (1 + 1e-7));  // the factor is rounded down, elements to nearest
  EXPECT_GE(Norm(Decoded(plain, clipped->bytes)), norm / 3 * (1 - 1e-6));
  EXPECT_EQ(EncodeUpdate({.encoding = plain, .clip = norm * 1.01}, Flat(layout, values), {})->bytes, Flat(layout, values));
  const std::vector<float> zeros(10'000, 0.0F);
  EXPECT_EQ(EncodeUpdate({.encoding = plain, .clip = 1}, Flat(layout, zeros), {})->bytes, Flat(layout, zeros));
}

TEST(UpdatePipelineTest, NoiseOfZeroChangesNoBit) {
  const TensorLayout layout = LayoutOf(999, 1);
  const auto noise = MakePhiloxSource({.seed = 1});
  const UpdateEncoding plain = UpdateEncoding::Of(Codec::kPlain, 0, layout);
  const LargeBytes flat = Flat(layout, Normals(1000, 2));
  EXPECT_EQ(EncodeUpdate({.encoding = plain, .clip = 100, .noise_stddev = 0, .noise = noise.get()}, flat, {})->bytes, flat);
}

TEST(UpdatePipelineTest, NoiseHasThePromisedDeviationAndLeavesBuffersAlone) {
  constexpr int64_t kElements = 1'000'000;
  const TensorLayout layout = LayoutOf(kElements, 100, 1, DType::kF64);
  const auto noise = MakePhiloxSource({.seed = 77, .client = 9, .version = 1});
  const LargeBytes flat = Flat(layout, std::vector<double>(kElements + 100, 0.125));
  const auto result = EncodeUpdate({.encoding = UpdateEncoding::Of(Codec::kPlain, 0, layout), .noise_stddev = 0.3, .noise = noise.get()}, flat, {});
  ASSERT_THAT(result, IsOk());
  double squares = 0;
  for (int64_t i = 0; i < kElements; ++i) {
    const double x = ReadAt<double>(result->bytes.data(), i) - 0.125;
    squares += x * x;
  }
  EXPECT_NEAR(std::sqrt(squares / kElements), 0.3, 0.003);
  const size_t buffers = kElements * sizeof(double);
  EXPECT_EQ(std::memcmp(result->bytes.data() + buffers, flat.data() + buffers, flat.size() - buffers), 0);
}

TEST(QuantiseTest, EveryFormGivesTheBitsOfTheFormula) {
  const PhiloxStream rounding{.seed = 0x123456789abcdef0, .client = 7, .version = 3, .stage = RandomStage::kRounding};
  std::vector<float> values = Normals(kQuantBlock, 9);
  values[3] = 0;
  values[4] = -0.0F;
  values[5] = 1e-40F;
  for (const int levels : {127, 7}) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{kQuantBlock} * 5, uint64_t{1} << 36}) {
      float largest = 0;
      for (const float x : values) largest = std::max(largest, std::abs(x));
      const float scale = largest / static_cast<float>(levels);
      auto factor = static_cast<float>(7 / static_cast<double>(largest));
      if (static_cast<double>(factor) * largest > 7) factor = std::nextafter(factor, 0.0F);
      std::vector<int8_t> expected;
      for (size_t i = 0; i < kQuantBlock; ++i) {
        const size_t word = i % 128;
        const uint32_t bits = rounding.Quad(first / kQuantBlock * 32 + word / 4).word[word % 4] >> (i < 128 ? 0 : 16) & 0xFFFFu;
        const float u = static_cast<float>(2 * bits + 1) * 0x1p-17F;
        const float q = levels == 7 ? values[i] * factor : values[i] / scale;
        expected.push_back(static_cast<int8_t>(std::clamp(std::floor(q + (1 + u)) - 1, static_cast<float>(-levels), static_cast<float>(levels))));
      }
      for (const QuantiseForm form : QuantiseForms()) {
        std::vector<int8_t> codes(kQuantBlock);
        EXPECT_EQ(form(values.data(), first, levels, rounding, codes.data()), scale);
        EXPECT_EQ(codes, expected) << levels << " levels, elements from " << first;
      }
    }
  }
  // What is a multiple of the scale stays it, whatever the word.
  for (const int levels : {127, 7}) {
    for (const float scale : {0.25F, 0.1F, 3e-30F}) {
      std::vector<int8_t> expected(kQuantBlock), codes(kQuantBlock);
      std::vector<float> multiples(kQuantBlock);
      for (size_t i = 0; i < kQuantBlock; ++i) {
        expected[i] = static_cast<int8_t>(static_cast<int>(i) % (2 * levels + 1) - levels);
        multiples[i] = static_cast<float>(expected[i]) * scale;
      }
      for (const QuantiseForm form : QuantiseForms()) {
        for (uint64_t first = 0; first < 400 * kQuantBlock; first += kQuantBlock) {
          form(multiples.data(), first, levels, rounding, codes.data());
          ASSERT_EQ(codes, expected) << levels << " levels of " << scale;
        }
      }
    }
  }
  for (const QuantiseForm form : QuantiseForms()) {
    const std::vector<float> zeros(kQuantBlock, 0.0F);
    std::vector<int8_t> codes(kQuantBlock, 9);
    EXPECT_EQ(form(zeros.data(), 0, 127, rounding, codes.data()), 0);
    EXPECT_EQ(codes, std::vector<int8_t>(kQuantBlock, 0));
  }
}

// T16: the mean of R roundings lies within 6σ of the value, the variance within the bounds of §13.4.
TEST(UpdatePipelineTest, StochasticRoundingIsUnbiasedWithinItsVariance) {
  constexpr int kElements = 512, kRepeats = 2000;
  const TensorLayout layout = LayoutOf(kElements);
  const std::vector<float> values = Normals(kElements, 6);
  for (const Codec codec : {Codec::kInt8, Codec::kInt4}) {
    const UpdateEncoding encoding = UpdateEncoding::Of(codec, 0, layout);
    std::vector<double> sum(kElements), squares(kElements);
    std::vector<float> scales(encoding.blocks());
    for (uint32_t version = 0; version < kRepeats; ++version) {
      const auto result = EncodeUpdate(
          {.encoding = encoding, .rounding = {.seed = 3, .client = 1, .version = version, .stage = RandomStage::kRounding}}, Flat(layout, values), {});
      ASSERT_THAT(result, IsOk());
      const std::vector<float> decoded = Decoded(encoding, result->bytes);
      for (size_t block = 0; block < scales.size(); ++block) scales[block] = ReadAt<float>(result->bytes.data(), block);
      for (int i = 0; i < kElements; ++i) {
        const double error = static_cast<double>(decoded[i]) - values[i];
        sum[i] += error;
        squares[i] += error * error;
      }
    }
    double mean_square = 0, mean_bound = 0;
    for (int i = 0; i < kElements; ++i) {
      const double step = scales[i / kQuantBlock];
      EXPECT_LT(std::abs(sum[i] / kRepeats), 6 * step / 2 / std::sqrt(kRepeats) + 1e-7 * std::abs(values[i])) << i;
      EXPECT_LT(squares[i] / kRepeats, step * step / 4 * (1 + 6 / std::sqrt(kRepeats))) << i;
      mean_square += squares[i] / kRepeats / kElements;
      mean_bound += step * step / 6 / kElements;
    }
    EXPECT_NEAR(mean_square / mean_bound, 1, 0.1);  // the values spread evenly over the steps
  }
}

TEST(UpdatePipelineTest, NearestRoundingOfHalfFloatsStaysWithinHalfAStep) {
  std::vector<float> values = Normals(50'000, 9);
  values[0] = 0;
  values[1] = -0.0F;
  values[2] = 6.1e-5F;   // around f16's smallest normal number
  values[3] = 3.1e-8F;   // and its smallest
  values[4] = -65504.0F;
  values[5] = 1e-30F;
  const TensorLayout layout = LayoutOf(static_cast<int64_t>(values.size()));
  for (const Codec codec : {Codec::kBf16, Codec::kF16}) {
    const UpdateEncoding encoding = UpdateEncoding::Of(codec, 0, layout);
    const auto result = EncodeUpdate({.encoding = encoding}, Flat(layout, values), {});
    ASSERT_THAT(result, IsOk());
    const std::vector<float> decoded = Decoded(encoding, result->bytes);
    for (size_t i = 0; i < values.size(); ++i) {
      const double step = codec == Codec::kBf16 ? std::abs(values[i]) * 0x1p-8 : std::max(std::abs(values[i]) * 0x1p-11, 0x1p-25);
      ASSERT_LE(std::abs(static_cast<double>(decoded[i]) - values[i]), step * (1 + 1e-6)) << i << " " << values[i];
    }
  }
  const auto large = EncodeUpdate({.encoding = UpdateEncoding::Of(Codec::kF16, 0, LayoutOf(1))}, Flat(LayoutOf(1), std::vector<float>{70000.0F}), {});
  EXPECT_THAT(large, StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("65504")));
}

TEST(UpdatePipelineTest, TopKKeepsTheLargestAndFeedsTheRestBack) {
  const TensorLayout layout = LayoutOf(8);
  const UpdateEncoding encoding = UpdateEncoding::Of(Codec::kTopK, 0.25, layout);
  ASSERT_EQ(encoding.kept, 2u);
  const std::vector<float> values = {1, -5, 2, 0, 5, 3, -1, 0.5F};
  const auto first = EncodeUpdate({.encoding = encoding}, Flat(layout, values), {});
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(Decoded(encoding, first->bytes), (std::vector<float>{0, -5, 0, 0, 5, 0, 0, 0}));
  EXPECT_EQ(first->residual, (std::vector<float>{1, 0, 2, 0, 0, 3, -1, 0.5F}));
  const auto second = EncodeUpdate({.encoding = encoding}, Flat(layout, values), first->residual);
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(Decoded(encoding, second->bytes), (std::vector<float>{0, -5, 0, 0, 0, 6, 0, 0}));
}

// What error feedback is for: over many updates everything arrives, though each carries a tenth of the elements.
TEST(UpdatePipelineTest, ErrorFeedbackDeliversTheWholeSumInTheEnd) {
  const TensorLayout layout = LayoutOf(200);
  const UpdateEncoding encoding = UpdateEncoding::Of(Codec::kTopK, 0.1, layout);
  const std::vector<float> values = Normals(200, 12);
  std::vector<double> arrived(200), arrived_without(200);
  std::vector<float> residual;
  constexpr int kRounds = 400;
  for (int round = 0; round < kRounds; ++round) {
    auto result = EncodeUpdate({.encoding = encoding}, Flat(layout, values), residual);
    ASSERT_THAT(result, IsOk());
    const std::vector<float> with = Decoded(encoding, result->bytes);
    const std::vector<float> without = Decoded(encoding, EncodeUpdate({.encoding = encoding}, Flat(layout, values), {})->bytes);
    residual = std::move(result->residual);
    for (size_t i = 0; i < 200; ++i) {
      arrived[i] += with[i];
      arrived_without[i] += without[i];
    }
  }
  double worst = 0, worst_without = 0;
  for (size_t i = 0; i < 200; ++i) {
    worst = std::max(worst, std::abs(arrived[i] / kRounds - values[i]));
    worst_without = std::max(worst_without, std::abs(arrived_without[i] / kRounds - values[i]));
  }
  EXPECT_LT(worst, 1e-3);
  EXPECT_GT(worst_without, 1e-2);
}

TEST(UpdatePipelineTest, RefusesWhatIsNotFiniteAndFeedbackOfAnotherSize) {
  const TensorLayout layout = LayoutOf(4);
  for (const Codec codec : kCoded) {
    const UpdateEncoding encoding = UpdateEncoding::Of(codec, 0.5, layout);
    const std::vector<float> bad = {1, std::numeric_limits<float>::quiet_NaN(), 0, 0};
    EXPECT_THAT(EncodeUpdate({.encoding = encoding}, Flat(layout, bad), {}), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(EncodeUpdate({.encoding = encoding}, Flat(layout, std::vector<float>(4)), std::vector<float>(3)),
                StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("feedback")));
    EXPECT_THAT(EncodeUpdate({.encoding = encoding}, LargeBytes(12), {}), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST(UpdatePipelineTest, Int8IsNearlyFourTimesSmallerAndInt4NearlyEight) {
  const TensorLayout layout = LayoutOf(1'000'000);
  const double plain = static_cast<double>(UpdateEncoding::Of(Codec::kPlain, 0, layout).total_bytes());
  EXPECT_GT(plain / static_cast<double>(UpdateEncoding::Of(Codec::kInt8, 0, layout).total_bytes()), 3.9);
  EXPECT_GT(plain / static_cast<double>(UpdateEncoding::Of(Codec::kInt4, 0, layout).total_bytes()), 7.7);
}

}  // namespace
}  // namespace tributary::client
