// The tensors of a model: names, types, shapes, kinds, and where each lies in a flat buffer.
//
// Flat form ("layout order"): trainable tensors, then buffers, then what the server owns, then counters, each group in the order given;
// elements row-major, little-endian, no padding between tensors. The first three groups share one floating type (the job's dtype) and form
// the float region [0, float_count()); counters are i64 and follow it. A model version, an update, a checkpoint and what SHA-256 is taken
// over are all this one form:
//
//   | trainable 0 | trainable 1 | … | buffer 0 | … | server-owned 0 | … | counter 0 (i64) | … |
//   |<--------------------- float_count() × float_bytes ------------->|<- counter_count() × 8 ->|
//
// In an update, trainable elements are Δ = new − old, buffers and counters are values (algorithms.md §1.4). Server-owned tensors are part of
// the model, go down with each version and are changed by nobody but the server: no update has them (WithGroups).
// When float_bytes × float_count() is not a multiple of 8, counters still follow without padding: read them with memcpy.
// Threads: immutable after Create. Errors: INVALID_ARGUMENT, see Create.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace tributary {

enum class DType : uint8_t { kF32 = 1, kF64 = 2, kI64 = 3 };
enum class TensorKind : uint8_t { kTrainable = 1, kBuffer = 2, kCounter = 3, kServerOwned = 4 };

size_t DTypeBytes(DType dtype);
// "F32", "F64", "I64": safetensors' names.
std::string_view DTypeName(DType dtype);
// "trainable", "buffer", "counter", "server_owned".
std::string_view TensorKindName(TensorKind kind);

struct TensorSpec {
  std::string name;             // 1 to 512 bytes, unique in its layout
  std::vector<int64_t> shape;   // empty for a scalar; every extent >= 0
  DType dtype = DType::kF32;
  TensorKind kind = TensorKind::kTrainable;
  bool operator==(const TensorSpec&) const = default;
};

struct PlacedTensor {
  TensorSpec spec;
  size_t elements = 0;
  size_t offset_bytes = 0;  // from the start of the flat form
  size_t bytes = 0;
};

class TensorLayout {
 public:
  // Limits against hostile input.
  static constexpr size_t kMaxTensors = 100'000;
  static constexpr size_t kMaxBytes = size_t{1} << 40;

  TensorLayout() = default;
  // INVALID_ARGUMENT: duplicate or empty name, negative extent, product or sum that overflows kMaxBytes, more than
  // kMaxTensors, floating tensors of two types, a counter that is not I64, another tensor that is.
  static absl::StatusOr<TensorLayout> Create(std::vector<TensorSpec> specs);

  const std::vector<PlacedTensor>& tensors() const { return tensors_; }  // in layout order
  DType float_dtype() const { return float_dtype_; }                     // kF32 if there are none
  size_t float_count() const { return float_count_; }          // trainable, buffer and server-owned elements
  size_t server_owned_count() const { return server_owned_count_; }              // of them the last
  size_t summed_count() const { return float_count_ - server_owned_count_; }     // those that updates are over
  size_t trainable_count() const { return trainable_count_; }  // elements; they come first
  size_t counter_count() const { return counter_count_; }
  size_t float_bytes() const { return float_count_ * DTypeBytes(float_dtype_); }
  size_t total_bytes() const { return float_bytes() + counter_count_ * 8; }
  const PlacedTensor* Find(std::string_view name) const;  // nullptr if absent; valid while the layout lives

  // Stable over releases: SHA-256 hex over names, types, kinds and shapes in layout order.
  std::string Fingerprint() const;
  bool operator==(const TensorLayout& other) const;

 private:
  std::vector<PlacedTensor> tensors_;
  DType float_dtype_ = DType::kF32;
  size_t float_count_ = 0;
  size_t trainable_count_ = 0;
  size_t server_owned_count_ = 0;
  size_t counter_count_ = 0;
};

// Layout of what carries several vectors over the trainable elements of `model` ("groups", each of the model's trainable tensors): the
// group "" is the model's own, tensors of the others are named "<group>/<name>". Groups come one after the other in the order given; the
// model's buffers and counters follow them. {""}: `model` without what the server owns.
absl::StatusOr<TensorLayout> WithGroups(const TensorLayout& model, const std::vector<std::string>& groups);

}  // namespace tributary
