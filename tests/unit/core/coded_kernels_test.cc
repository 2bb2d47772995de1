#include "aggregator/core/coded_kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "aggregator/core/kernels_reference.h"
#include "aggregator/core/reducer.h"
#include "client/core/update_pipeline.h"
#include "tests/support/status_matchers.h"

namespace tributary::aggregator {
namespace {

using ::tributary::testing::IsOk;
using ::tributary::testing::StatusIs;

constexpr size_t kTrainable = 3 * kQuantBlock + 77, kBuffers = 19, kFloats = kTrainable + kBuffers;
constexpr Codec kCodecs[] = {Codec::kPlain, Codec::kBf16, Codec::kF16, Codec::kInt8, Codec::kInt4, Codec::kTopK};

TensorLayout Layout() {
  return *TensorLayout::Create({{.name = "w", .shape = {kTrainable}},
                                {.name = "running", .shape = {kBuffers}, .kind = TensorKind::kBuffer},
                                {.name = "batches", .shape = {1}, .dtype = DType::kI64, .kind = TensorKind::kCounter}});
}

// `count` encoded updates, each from an odd address on.
struct EncodedUpdates {
  EncodedUpdates(Codec codec, size_t count) : encoding(UpdateEncoding::Of(codec, 0.07, Layout())) {
    std::mt19937 random(17);
    std::normal_distribution<float> normal(0, 0.02F);
    for (size_t j = 0; j < count; ++j) {
      LargeBytes flat(Layout().total_bytes());
      std::memset(flat.data(), 0, flat.size());
      auto* values = reinterpret_cast<float*>(flat.data());
      for (size_t i = 0; i < kFloats; ++i) values[i] = i % 97 == 5 ? 0 : normal(random);
      const auto encoded = client::EncodeUpdate({.encoding = encoding, .rounding = {.seed = 1, .client = static_cast<uint32_t>(j)}}, std::move(flat), {});
      EXPECT_THAT(encoded, IsOk());
      bytes.emplace_back(1 + encoded->bytes.size());
      std::copy(encoded->bytes.begin(), encoded->bytes.end(), bytes.back().begin() + 1);
      weights.push_back(0.25 + 1.5 * static_cast<double>(j));
    }
    for (const auto& update : bytes) pointers.push_back(update.data() + 1);
  }
  // The whole float region of each, decoded by plain loops.
  std::vector<std::vector<float>> Decoded() const {
    std::vector<std::vector<float>> all;
    for (const std::byte* update : pointers) {
      all.emplace_back(kFloats);
      DecodeRange(encoding, update, 0, all.back());
    }
    return all;
  }
  UpdateEncoding encoding;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<const std::byte*> pointers;
  std::vector<double> weights;
};

class CodedKernelsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

INSTANTIATE_TEST_SUITE_P(Targets, CodedKernelsTest, ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

struct Piece {
  size_t first, count;
};
const Piece kPieces[] = {{0, kFloats}, {0, 0}, {0, kQuantBlock}, {3, 200}, {100, 300}, {kQuantBlock + 128, 128}, {kTrainable - 40, 50}, {kTrainable + 2, 9}};

TEST_P(CodedKernelsTest, FoldsToTheBitsOfDecodeThenFold) {
  for (const Codec codec : kCodecs) {
    for (const size_t k : {size_t{1}, size_t{3}, kMaxFoldUpdates}) {
      const EncodedUpdates updates(codec, k);
      const auto decoded = updates.Decoded();
      for (const auto& [first, count] : kPieces) {
        for (const bool fresh : {true, false}) {
          std::vector<double> got(count, 0.125), expected(count, 0.125);
          std::vector<int64_t> got_fixed(count, 99), expected_fixed(count, 99);
          std::vector<const std::byte*> plain;
          for (const auto& values : decoded) plain.push_back(reinterpret_cast<const std::byte*>(values.data() + first));
          const CodedRange range{.encoding = &updates.encoding, .first = first, .count = count};
          ASSERT_TRUE(FoldCoded(got.data(), range, updates.pointers, updates.weights.data(), fresh));
          ASSERT_TRUE(FoldCodedFixed(got_fixed.data(), range, updates.pointers, updates.weights.data(), fresh));
          ASSERT_TRUE(reference::FoldF32(expected.data(), plain.data(), updates.weights.data(), k, count, fresh));
          ASSERT_TRUE(reference::FoldFixedF32(expected_fixed.data(), plain.data(), updates.weights.data(), k, count, fresh));
          ASSERT_TRUE(count == 0 || std::memcmp(got.data(), expected.data(), count * sizeof(double)) == 0) << "codec " << static_cast<int>(codec) << " at " << first;
          ASSERT_EQ(got_fixed, expected_fixed) << "codec " << static_cast<int>(codec) << " at " << first;
        }
      }
    }
  }
}

TEST_P(CodedKernelsTest, ReportsSumsThatLeaveTheirRange) {
  for (const Codec codec : kCodecs) {
    EncodedUpdates updates(codec, 2);
    updates.weights = {1e307, 1e307};
    const CodedRange range{.encoding = &updates.encoding, .first = 0, .count = kFloats};
    std::vector<double> acc(kFloats, 1.79e308);  // a positive value times 1e307 more is infinite
    std::vector<int64_t> fixed(kFloats, 0);
    EXPECT_FALSE(FoldCoded(acc.data(), range, updates.pointers, updates.weights.data(), false)) << static_cast<int>(codec);
    EXPECT_FALSE(FoldCodedFixed(fixed.data(), range, updates.pointers, updates.weights.data(), true)) << static_cast<int>(codec);
  }
}

TEST(CheckEncodedTest, MeasuresTheDecodedValues) {
  for (const Codec codec : kCodecs) {
    const EncodedUpdates updates(codec, 1);
    double squares = 0, largest = 0;
    const std::vector<float> decoded = updates.Decoded()[0];
    for (const float x : decoded) {
      squares += static_cast<double>(x) * x;
      largest = std::max(largest, static_cast<double>(std::abs(x)));
    }
    const auto scan = CheckEncoded(updates.encoding, std::span(updates.bytes[0]).subspan(1));
    ASSERT_THAT(scan, IsOk());
    EXPECT_TRUE(scan->finite);
    EXPECT_NEAR(scan->sum_squares, squares, 1e-12 * squares);
    EXPECT_EQ(scan->max_abs, largest);
  }
}

// Bytes from outside, one thing wrong in each.
TEST(CheckEncodedTest, RefusesWhatNoEncoderWrites) {
  const auto with = [](Codec codec, size_t offset, const auto& value) {
    EncodedUpdates updates(codec, 1);
    std::memcpy(updates.bytes[0].data() + 1 + offset, &value, sizeof(value));
    return CheckEncoded(updates.encoding, std::span(updates.bytes[0]).subspan(1));
  };
  const auto refused = [](std::string_view text) { return StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr(std::string(text))); };
  const UpdateEncoding int8 = UpdateEncoding::Of(Codec::kInt8, 0, Layout()), topk = UpdateEncoding::Of(Codec::kTopK, 0.07, Layout());
  for (const Codec codec : {Codec::kInt8, Codec::kInt4}) {
    EXPECT_THAT(with(codec, 4, std::nanf("")), refused("block 1"));
    EXPECT_THAT(with(codec, 0, -1.0F), refused("block 0"));
    EXPECT_THAT(with(codec, 8, std::numeric_limits<float>::infinity()), refused("block 2"));
  }
  EXPECT_THAT(with(Codec::kInt8, int8.blocks() * 4 + 9, uint8_t{0x80}), refused("element 9"));
  EXPECT_THAT(with(Codec::kInt4, int8.blocks() * 4 + 9, uint8_t{0x80}), refused("byte 9"));
  EXPECT_THAT(with(Codec::kInt4, int8.blocks() * 4 + 9, uint8_t{0x08}), refused("byte 9"));
  EXPECT_THAT(with(Codec::kTopK, 0, uint32_t{kTrainable}), refused("below"));
  EXPECT_THAT(with(Codec::kTopK, 4, uint32_t{0}), refused("entry 1"));
  const auto nan_value = with(Codec::kTopK, topk.kept * 4, std::nanf(""));
  ASSERT_THAT(nan_value, IsOk());
  EXPECT_FALSE(nan_value->finite);
  for (const uint16_t code : {0x7C00, 0xFC00, 0x7E01}) {
    const auto f16 = with(Codec::kF16, 20, code);
    ASSERT_THAT(f16, IsOk());
    EXPECT_FALSE(f16->finite) << code;
  }
  const auto bf16 = with(Codec::kBf16, 20, uint16_t{0x7F80});
  ASSERT_THAT(bf16, IsOk());
  EXPECT_FALSE(bf16->finite);
  const auto buffer = with(Codec::kInt8, int8.buffers_offset(), std::nanf(""));
  ASSERT_THAT(buffer, IsOk());
  EXPECT_FALSE(buffer->finite);
}

// T17: in fixed point any order of arrival and any cut into shards and batches gives the same bits, for every codec.
TEST(CodedReducerTest, AnyOrderAndAnyShardsGiveEqualBitsInFixedPoint) {
  for (const Codec codec : kCodecs) {
    const EncodedUpdates updates(codec, 7);
    std::vector<UpdateView> views;
    for (size_t j = 0; j < 7; ++j) views.push_back({.flat = updates.pointers[j], .weight = updates.weights[j]});
    const auto reducer = WithCodec(MakeMeanReducer(DType::kF32, Arithmetic::kFixedPoint), updates.encoding);
    std::vector<int64_t> expected(kFloats);
    ASSERT_TRUE(reducer->FoldBlock(reinterpret_cast<std::byte*>(expected.data()), 0, kFloats, views, true));
    std::mt19937 random(3);
    for (int trial = 0; trial < 8; ++trial) {
      std::shuffle(views.begin(), views.end(), random);
      std::vector<int64_t> got(kFloats);
      const size_t cut = random() % kFloats, batch = 1 + random() % 7;
      for (const auto& [first, count] : {Piece{0, cut}, Piece{cut, kFloats - cut}}) {
        auto* state = reinterpret_cast<std::byte*>(got.data() + first);
        for (size_t done = 0; done < views.size(); done += batch) {
          const auto some = std::span<const UpdateView>(views).subspan(done, std::min(batch, views.size() - done));
          ASSERT_TRUE(reducer->FoldBlock(state, first, count, some, done == 0));
        }
      }
      EXPECT_EQ(got, expected) << "codec " << static_cast<int>(codec);
    }
  }
}

// A strategy's own reducer that knows nothing of codecs.
class Doubling final : public Reducer {
 public:
  size_t state_bytes_per_element() const override { return mean_->state_bytes_per_element(); }
  bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const override {
    std::vector<UpdateView> doubled(updates.begin(), updates.end());
    for (UpdateView& view : doubled) view.weight *= 2;
    return mean_->FoldBlock(state, first, count, doubled, fresh);
  }
  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override { return mean_->MergeBlock(state, other, count); }
  void ReportBlock(const std::byte* state, size_t count, double sum_weight, double* mean) const override {
    mean_->ReportBlock(state, count, sum_weight, mean);
  }

 private:
  std::unique_ptr<Reducer> mean_ = MakeMeanReducer(DType::kF32, Arithmetic::kFloat64);
};

TEST(CodedReducerTest, ReducersThatKnowNoCodecGetDecodedBlocks) {
  for (const Codec codec : kCodecs) {
    const EncodedUpdates updates(codec, 3);
    std::vector<UpdateView> views, doubled;
    for (size_t j = 0; j < 3; ++j) {
      views.push_back({.flat = updates.pointers[j], .weight = updates.weights[j]});
      doubled.push_back({.flat = updates.pointers[j], .weight = 2 * updates.weights[j]});
    }
    const auto own = WithCodec(std::make_unique<Doubling>(), updates.encoding);
    const auto mean = WithCodec(MakeMeanReducer(DType::kF32, Arithmetic::kFloat64), updates.encoding);
    std::vector<double> got(500), expected(500);
    ASSERT_TRUE(own->FoldBlock(reinterpret_cast<std::byte*>(got.data()), 123, 500, views, true));
    ASSERT_TRUE(mean->FoldBlock(reinterpret_cast<std::byte*>(expected.data()), 123, 500, doubled, true));
    EXPECT_EQ(got, expected) << "codec " << static_cast<int>(codec);
  }
}

}  // namespace
}  // namespace tributary::aggregator
