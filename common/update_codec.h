// How an update's trainable elements travel: as they are, or in fewer bits. Buffers and counters follow as they are.
//
//   f32, f64   the flat form of tensor_layout.h
//   bf16, f16  | trainable × 2 B | buffers | counters |                         round to nearest even
//   int8       | scale f32 × blocks | trainable × 1 B | buffers | counters |    x = scale · code, code in [−127, 127]
//   int4       | scale f32 × blocks | blocks × 128 B | buffers | counters |     x = scale · code, code in [−7, 7], two a byte
//   topk       | index u32 × kept, ascending | value f32 × kept | buffers | counters |   all other elements are 0
//
// A block is kQuantBlock elements; its scale is max|x| / 127 or 7, finite and >= 0. Byte k of an int4 block holds the codes of its
// elements k (low half, two's complement) and k + 128 (high half); places past the last element are 0. Little-endian, no padding.
// x = scale · code is one product in float. f16 codes with the exponent of infinity are not used.
// Sources: QSGD (Alistarh et al., NeurIPS 2017) for stochastic rounding; algorithms.md §13.4. Threads: values and pure functions.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary {

enum class Codec : uint8_t { kPlain = 0, kBf16 = 1, kF16 = 2, kInt8 = 3, kInt4 = 4, kTopK = 5 };
// "f32" and "f64" are kPlain. NOT_FOUND for another name.
absl::StatusOr<Codec> CodecOf(std::string_view name);

inline constexpr size_t kQuantBlock = 256;
inline constexpr size_t kQuantHalf = kQuantBlock / 2;

// The shape of one job's encoded updates.
struct UpdateEncoding {
  Codec codec = Codec::kPlain;
  DType dtype = DType::kF32;   // of trainable and buffer elements
  size_t trainable = 0;        // elements
  size_t floats = 0;           // trainable and buffer elements
  size_t counters = 0;
  size_t kept = 0;             // topk

  // `fraction`: of the trainable elements that topk keeps, at least one.
  static UpdateEncoding Of(Codec codec, double fraction, const TensorLayout& layout);

  size_t blocks() const { return (trainable + kQuantBlock - 1) / kQuantBlock; }
  size_t trainable_bytes() const;
  size_t buffers_offset() const { return trainable_bytes(); }
  size_t counters_offset() const { return trainable_bytes() + (floats - trainable) * DTypeBytes(dtype); }
  size_t total_bytes() const { return counters_offset() + counters * 8; }
  bool operator==(const UpdateEncoding&) const = default;
};

uint16_t FloatToBf16(float value);   // NaN stays NaN
float Bf16ToFloat(uint16_t code);
uint16_t FloatToF16(float value);    // the exponent of infinity from 65520 on
float F16ToFloat(uint16_t code);     // defined for exponents below that of infinity

// Elements [first, first + out.size()) of the float region, decoded; plain loops, the reference of the kernels. f32 jobs only
// (kPlain included). Precondition: the bytes have passed CheckEncoded of the kernels, or come from the encoder.
void DecodeRange(const UpdateEncoding& encoding, const std::byte* update, size_t first, std::span<float> out);

// Unaligned little-endian reads.
template <typename T>
T ReadAt(const std::byte* from, size_t index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace tributary
