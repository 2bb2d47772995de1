// A trained update that is still on the GPU. Clipped, noised and encoded there, its bytes come off in parts, so that storing one overlaps
// with making the next: the bytes that MakeUpdate (private_update.h) gives for the same Δ. Or it is folded there with others, for who wants
// nothing but their sum. Implemented in client/torch/device.
// Threads: one call at a time, on any thread; the learner goes on meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "client/core/private_update.h"
#include "common/status.h"
#include "common/update_codec.h"

namespace tributary::client {

class DeviceUpdate;

struct DeviceTerm {
  DeviceUpdate* update = nullptr;
  double weight = 0;
};

class DeviceUpdate {
 public:
  // Takes a part of the result, `at` bytes from its beginning; parts come in any order and cover all of it once.
  using Sink = std::function<absl::Status(size_t at, std::span<const std::byte> part)>;

  virtual ~DeviceUpdate() = default;
  // Of the update in its flat form.
  virtual size_t flat_bytes() const = 0;
  // ‖Δ‖₂ as EncodedUpdate has it. Errors: of EncodeUpdate, the sink's, the device's.
  virtual absl::StatusOr<double> Encode(const UpdatePlan& plan, const Sink& sink) = 0;
  // max |Δ|: finite, as Δ is.
  virtual double max_abs() const = 0;
  // sums[i] += Σ weight·Δ[i] over `terms`, in their order, this update one of them, all without buffers or counters and of sums.size() elements:
  // FoldF32 and FoldFixedF32 (aggregator/core/kernels.h) bit for bit, `first` and false as theirs. Errors: INVALID_ARGUMENT for updates of
  // another size or device; the device's.
  virtual absl::StatusOr<bool> Fold(std::span<const DeviceTerm> terms, bool first, std::span<double> sums) = 0;
  virtual absl::StatusOr<bool> FoldFixed(std::span<const DeviceTerm> terms, bool first, std::span<int64_t> sums) = 0;
};

// Whether an update of this encoding can be made on the device.
inline bool DeviceEncodes(const UpdateEncoding& encoding) {
  const bool filter = encoding.codec == Codec::kPlain || encoding.codec == Codec::kBf16 || encoding.codec == Codec::kInt8 || encoding.codec == Codec::kInt4;
  return encoding.dtype == DType::kF32 && filter;
}

}  // namespace tributary::client
