// A trained update that is still on the GPU: clipped, noised and encoded there, its bytes come off in parts, so that storing one overlaps
// with making the next. The bytes are those that MakeUpdate (private_update.h) gives for the same Δ. Implemented in client/torch/device.
// Threads: one call at a time, on any thread; the learner goes on meanwhile.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "client/core/private_update.h"
#include "common/status.h"
#include "common/update_codec.h"

namespace tributary::client {

class DeviceUpdate {
 public:
  // Takes a part of the result, `at` bytes from its beginning; parts come in any order and cover all of it once.
  using Sink = std::function<absl::Status(size_t at, std::span<const std::byte> part)>;

  virtual ~DeviceUpdate() = default;
  // Of the update in its flat form.
  virtual size_t flat_bytes() const = 0;
  // ‖Δ‖₂ as EncodedUpdate has it. Errors: of EncodeUpdate, the sink's, the device's.
  virtual absl::StatusOr<double> Encode(const UpdatePlan& plan, const Sink& sink) = 0;
};

// Whether an update of this encoding can be made on the device.
inline bool DeviceEncodes(const UpdateEncoding& encoding) {
  const bool filter = encoding.codec == Codec::kPlain || encoding.codec == Codec::kBf16 || encoding.codec == Codec::kInt8 || encoding.codec == Codec::kInt4;
  return encoding.dtype == DType::kF32 && filter;
}

}  // namespace tributary::client
