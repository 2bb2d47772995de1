#include "common/update_codec.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "common/check.h"
#include "common/codec_table.h"

namespace tributary {
namespace {

constexpr double kScaleBits = 32.0 / kQuantBlock;  // a float for each block
constexpr CodecInfo kCodecs[] = {
    {"f32", Codec::kPlain, 32, "as it is", "-"},
    {"f64", Codec::kPlain, 64, "as it is, of jobs with dtype float64", "-"},
    {"bf16", Codec::kBf16, 16, "rounded to nearest even, eight bits of mantissa", "-"},
    {"f16", Codec::kF16, 16, "rounded to nearest even, IEEE half precision; magnitudes to 65504", "IEEE 754"},
    {"int8", Codec::kInt8, 8 + kScaleBits, "stochastic rounding to 127 levels of a block's largest magnitude: unbiased", "QSGD: Alistarh et al., NeurIPS 2017"},
    {"int4", Codec::kInt4, 4 + kScaleBits, "stochastic rounding to 7 levels of a block's largest magnitude: unbiased", "QSGD: Alistarh et al., NeurIPS 2017"},
    {"topk", Codec::kTopK, 64, "the largest elements ({kind: topk, fraction: 0.01}); what it leaves out comes with the next update",
     "error feedback: Seide et al. 2014; Stich et al. 2018"},
};

// The code of element `index` of its block.
int Int4Code(const std::byte* codes, size_t block, size_t index) {
  const auto byte = static_cast<uint8_t>(codes[block * kQuantHalf + index % kQuantHalf]);
  const auto half = static_cast<int8_t>(index < kQuantHalf ? byte << 4 : byte & 0xF0);
  return half / 16;
}

void DecodeTrainable(const UpdateEncoding& encoding, const std::byte* update, size_t first, std::span<float> out) {
  const std::byte* codes = update + encoding.blocks() * sizeof(float);
  switch (encoding.codec) {
    case Codec::kPlain:
      std::memcpy(out.data(), update + first * sizeof(float), out.size_bytes());
      return;
    case Codec::kBf16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = Bf16ToFloat(ReadAt<uint16_t>(update, first + i));
      return;
    case Codec::kF16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = F16ToFloat(ReadAt<uint16_t>(update, first + i));
      return;
    case Codec::kInt8:
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = ReadAt<float>(update, (first + i) / kQuantBlock) * static_cast<float>(ReadAt<int8_t>(codes, first + i));
      }
      return;
    case Codec::kInt4:
      for (size_t i = 0; i < out.size(); ++i) {
        const size_t block = (first + i) / kQuantBlock;
        out[i] = ReadAt<float>(update, block) * static_cast<float>(Int4Code(codes, block, (first + i) % kQuantBlock));
      }
      return;
    case Codec::kTopK:
      break;
  }
  std::fill(out.begin(), out.end(), 0.0F);
  size_t low = 0, high = encoding.kept;
  while (low < high) {  // the first kept element that is not before the range
    const size_t middle = (low + high) / 2;
    if (ReadAt<uint32_t>(update, middle) < first) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const std::byte* values = update + encoding.kept * sizeof(uint32_t);
  for (; low < encoding.kept; ++low) {
    const size_t index = ReadAt<uint32_t>(update, low);
    if (index >= first + out.size()) break;
    out[index - first] = ReadAt<float>(values, low);
  }
}

}  // namespace

std::span<const CodecInfo> Codecs() { return kCodecs; }

absl::StatusOr<Codec> CodecOf(std::string_view name) {
  std::vector<std::string_view> names;
  for (const CodecInfo& info : kCodecs) {
    if (info.name == name) return info.codec;
    names.push_back(info.name);
  }
  return NotFound("codec: expected one of {}, got '{}'", fmt::format("{}", fmt::join(names, ", ")), name);
}

UpdateEncoding UpdateEncoding::Of(Codec codec, double fraction, const TensorLayout& layout) {
  UpdateEncoding encoding{.codec = codec,
                          .dtype = layout.float_dtype(),
                          .trainable = layout.trainable_count(),
                          .floats = layout.float_count(),
                          .counters = layout.counter_count(),
                          .kept = 0};
  if (codec == Codec::kTopK) {
    const auto wanted = static_cast<size_t>(std::llround(fraction * static_cast<double>(encoding.trainable)));
    encoding.kept = std::clamp<size_t>(wanted, std::min<size_t>(1, encoding.trainable), encoding.trainable);
  }
  return encoding;
}

size_t UpdateEncoding::trainable_bytes() const {
  switch (codec) {
    case Codec::kPlain:
      break;
    case Codec::kBf16:
    case Codec::kF16:
      return trainable * 2;
    case Codec::kInt8:
      return blocks() * sizeof(float) + trainable;
    case Codec::kInt4:
      return blocks() * (sizeof(float) + kQuantHalf);
    case Codec::kTopK:
      return kept * (sizeof(uint32_t) + sizeof(float));
  }
  return trainable * DTypeBytes(dtype);
}

uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

float Bf16ToFloat(uint16_t code) { return std::bit_cast<float>(uint32_t{code} << 16); }

uint16_t FloatToF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520: halfway to 2^16
  if (magnitude < 0x38800000u) {                        // under 2^−14: a multiple of 2^−24; the sum rounds to it
    const float rounded = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(rounded) - 0x3F000000u));
  }
  const uint32_t rebiased = magnitude - (112u << 23);
  return static_cast<uint16_t>(sign | ((rebiased + 0xFFFu + (rebiased >> 13 & 1u)) >> 13));
}

float F16ToFloat(uint16_t code) {
  // Exponent and mantissa in place, then the difference of the biases as a factor: exact, subnormals included.
  const float magnitude = std::bit_cast<float>((code & 0x7FFFu) << 13) * 0x1p112F;
  return (code & 0x8000u) != 0 ? -magnitude : magnitude;
}

void DecodeRange(const UpdateEncoding& encoding, const std::byte* update, size_t first, std::span<float> out) {
  TRIB_CHECK(encoding.dtype == DType::kF32 && first + out.size() <= encoding.floats, "elements {}+{} of {}", first, out.size(), encoding.floats);
  const size_t coded = first < encoding.trainable ? std::min(out.size(), encoding.trainable - first) : 0;
  DecodeTrainable(encoding, update, first, out.first(coded));
  if (coded == out.size()) return;
  const size_t buffer = first + coded - encoding.trainable;
  std::memcpy(out.data() + coded, update + encoding.buffers_offset() + buffer * sizeof(float), (out.size() - coded) * sizeof(float));
}

}  // namespace tributary
