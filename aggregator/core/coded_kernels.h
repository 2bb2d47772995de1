// The kernels of kernels.h over encoded updates (common/update_codec.h): decoded in registers inside the fused accumulate, so that
// memory is read once and in few bytes. acc[i] += Σ_k w_k · decoded_k[first + i] for i in [0, n), elements of the float region of
// F32 jobs. decoded values are those of DecodeRange, and sums round as kernels.h says: every instruction set gives the bits of "decode,
// then fold". Results and preconditions as there; updates must have passed CheckEncoded. All updates have the same encoding.
// Threads: pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "aggregator/core/kernels.h"
#include "common/status.h"
#include "common/update_codec.h"

namespace tributary::aggregator {

struct CodedRange {
  const UpdateEncoding* encoding = nullptr;
  size_t first = 0;
  size_t count = 0;
};

// 0 to kMaxFoldUpdates updates.
bool FoldCoded(double* acc, const CodedRange& range, std::span<const std::byte* const> updates, const double* weights, bool fresh);
bool FoldCodedFixed(int64_t* acc, const CodedRange& range, std::span<const std::byte* const> updates, const double* weights, bool fresh);

// What ingress must know of an encoded update from outside before anybody folds it: INVALID_ARGUMENT naming block or element for a scale
// that is negative or not finite, a code out of range, top-k indices that do not ascend or lie outside. The scan is over all decoded floats,
// buffers included; finite = false for a value that is not (f16: the exponent of infinity).
// Precondition: update.size() == encoding.total_bytes().
absl::StatusOr<ScanResult> CheckEncoded(const UpdateEncoding& encoding, std::span<const std::byte> update);

// The same of an update in any encoding, kPlain included: there nothing but its numbers can be wrong.
absl::StatusOr<ScanResult> ScanUpdate(const UpdateEncoding& encoding, std::span<const std::byte> update);
// Of `scan`'s Σ x² the part of the trainable elements: buffers are not clipped.
double TrainableSquares(const UpdateEncoding& encoding, std::span<const std::byte> update, const ScanResult& scan);

}  // namespace tributary::aggregator
