#include "client/core/update_pipeline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "client/core/quantise.h"
#include "common/check.h"
#include "common/tree_sum.h"

namespace tributary::client {
namespace {

// Takes pieces of the vector in order and writes codes; buffers what does not fill a block.
class Encoder {
 public:
  Encoder(const UpdateEncoding& encoding, const PhiloxStream& rounding, std::byte* out) : encoding_(encoding), rounding_(rounding), out_(out) {}

  absl::Status Push(std::span<const float> piece) {
    switch (encoding_.codec) {
      case Codec::kBf16:
        for (const float x : piece) Write<uint16_t>(next_++, FloatToBf16(x), 0);
        return absl::OkStatus();
      case Codec::kF16:
        for (const float x : piece) {
          const uint16_t code = FloatToF16(x);
          if ((code & 0x7C00u) == 0x7C00u) return InvalidArgument("codec f16: element {}: expected a value of at most 65504, got {}", next_, x);
          Write<uint16_t>(next_++, code, 0);
        }
        return absl::OkStatus();
      case Codec::kInt8:
      case Codec::kInt4:
        for (size_t done = 0; done < piece.size();) {
          if (filled_ == 0 && piece.size() - done >= kQuantBlock) {  // a whole block as it lies
            Quantise(piece.subspan(done).first<kQuantBlock>(), kQuantBlock);
            done += kQuantBlock;
            continue;
          }
          const size_t count = std::min(piece.size() - done, kQuantBlock - filled_);
          std::copy_n(piece.begin() + static_cast<std::ptrdiff_t>(done), count, block_.begin() + static_cast<std::ptrdiff_t>(filled_));
          filled_ += count;
          done += count;
          if (filled_ == kQuantBlock) QuantiseFilled();
        }
        return absl::OkStatus();
      case Codec::kPlain:
      case Codec::kTopK:
        break;
    }
    return Internal("codec {} is not a filter", static_cast<int>(encoding_.codec));
  }

  void Finish() {
    if (filled_ > 0) QuantiseFilled();
  }

 private:
  template <typename T>
  void Write(size_t index, T value, size_t offset) {
    std::memcpy(out_ + offset + index * sizeof(T), &value, sizeof(T));
  }

  void QuantiseFilled() {
    std::fill(block_.begin() + static_cast<std::ptrdiff_t>(filled_), block_.end(), 0.0F);
    Quantise(block_, std::exchange(filled_, 0));
  }

  // The next block, of which `count` elements are the vector's.
  void Quantise(std::span<const float, kQuantBlock> x, size_t count) {
    const size_t block = next_ / kQuantBlock;
    const bool int8 = encoding_.codec == Codec::kInt8;
    std::array<int8_t, kQuantBlock> rounded;
    Write<float>(block, QuantiseBlock(x, next_, int8 ? 127 : 7, rounding_, rounded), 0);
    std::byte* const codes = out_ + encoding_.blocks() * sizeof(float);
    if (int8) {
      std::memcpy(codes + next_, rounded.data(), count);
    } else {
      std::array<std::byte, kQuantHalf> pairs;
      for (size_t k = 0; k < kQuantHalf; ++k) {
        pairs[k] = static_cast<std::byte>((static_cast<uint8_t>(rounded[k]) & 0x0F) | static_cast<uint8_t>(rounded[k + kQuantHalf]) << 4);
      }
      std::memcpy(codes + block * kQuantHalf, pairs.data(), kQuantHalf);
    }
    next_ += count;
  }

  const UpdateEncoding encoding_;
  const PhiloxStream rounding_;
  std::byte* const out_;
  size_t next_ = 0;    // elements written
  size_t filled_ = 0;  // of block_
  std::array<float, kQuantBlock> block_{};
};

// The `kept` largest by magnitude, the lower number first among equals.
void EncodeTopK(const UpdateEncoding& encoding, std::span<const float> values, std::byte* out, std::vector<float>* residual) {
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0U);
  const auto larger = [values](uint32_t a, uint32_t b) {
    const float x = std::abs(values[a]), y = std::abs(values[b]);
    return x != y ? x > y : a < b;
  };
  if (encoding.kept < order.size()) std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(encoding.kept), order.end(), larger);
  order.resize(encoding.kept);
  std::sort(order.begin(), order.end());
  residual->assign(values.begin(), values.end());
  std::byte* out_values = out + encoding.kept * sizeof(uint32_t);
  for (size_t i = 0; i < order.size(); ++i) {
    std::memcpy(out + i * sizeof(uint32_t), &order[i], sizeof(uint32_t));
    std::memcpy(out_values + i * sizeof(float), &values[order[i]], sizeof(float));
    (*residual)[order[i]] = 0;
  }
}

// The largest number of type T that is not above x, of 0 < x < 1: the clipped norm is at most the clip.
template <typename T>
T RoundedDown(double x) {
  const auto nearest = static_cast<T>(x);
  return static_cast<double>(nearest) > x ? std::nextafter(nearest, T{0}) : nearest;
}

template <typename T>
absl::StatusOr<EncodedUpdate> Encode(const PipelineOptions& options, LargeBytes flat, std::span<const float> feedback) {
  const UpdateEncoding& encoding = options.encoding;
  const std::span<T> values(reinterpret_cast<T*>(flat.data()), encoding.trainable);
  EncodedUpdate result;
  if (!feedback.empty()) {
    for (size_t i = 0; i < values.size(); ++i) values[i] += static_cast<T>(feedback[i]);
  }
  const double sum = TreeSumOfSquares(std::span<const T>(values));
  if (!std::isfinite(sum)) return InvalidArgument("the update is not finite");
  result.norm = std::sqrt(sum);
  const T factor = options.clip > 0 && result.norm > options.clip ? RoundedDown<T>(options.clip / result.norm) : T{1};
  const bool plain = encoding.codec == Codec::kPlain;
  if (!plain) result.bytes.resize(encoding.total_bytes());
  Encoder encoder(encoding, options.rounding, result.bytes.data());
  for (size_t first = 0; first < values.size(); first += options.piece_elements) {
    const std::span<T> piece = values.subspan(first, std::min(options.piece_elements, values.size() - first));
    if (factor != 1) {
      for (T& x : piece) x *= factor;
    }
    if (options.noise_stddev > 0) AddNormals(*options.noise, first, options.noise_stddev, piece);
    if constexpr (std::is_same_v<T, float>) {
      if (!plain && encoding.codec != Codec::kTopK) TRIB_RETURN_IF_ERROR(encoder.Push(piece));
    }
  }
  if (plain) {
    result.bytes = std::move(flat);
    return result;
  }
  if constexpr (std::is_same_v<T, float>) {
    encoder.Finish();
    if (encoding.codec == Codec::kTopK) EncodeTopK(encoding, values, result.bytes.data(), &result.residual);
  }
  const size_t trainable_bytes = encoding.trainable * sizeof(T);
  std::memcpy(result.bytes.data() + encoding.buffers_offset(), flat.data() + trainable_bytes, flat.size() - trainable_bytes);
  return result;
}

}  // namespace

absl::StatusOr<EncodedUpdate> EncodeUpdate(const PipelineOptions& options, LargeBytes flat, std::span<const float> feedback) {
  const UpdateEncoding& encoding = options.encoding;
  const size_t expected = encoding.floats * DTypeBytes(encoding.dtype) + encoding.counters * 8;
  if (flat.size() != expected) return InvalidArgument("the update has {} bytes, its layout {}", flat.size(), expected);
  TRIB_CHECK(options.piece_elements > 0 && (options.noise_stddev == 0 || options.noise != nullptr));
  if (!feedback.empty() && feedback.size() != encoding.trainable) {
    return InvalidArgument("error feedback: expected {} elements, got {}", encoding.trainable, feedback.size());
  }
  if (encoding.codec == Codec::kPlain && options.clip == 0 && options.noise_stddev == 0 && feedback.empty()) {
    return EncodedUpdate{.bytes = std::move(flat), .residual = {}, .norm = 0};  // no stage has anything to do
  }
  if (encoding.dtype == DType::kF32) return Encode<float>(options, std::move(flat), feedback);
  if (encoding.codec != Codec::kPlain) return InvalidArgument("codec: float64 updates travel as f64");
  return Encode<double>(options, std::move(flat), feedback);
}

}  // namespace tributary::client
