// Accumulation kernels: Highway with run-time dispatch here, plain loops of the same meaning in kernels_reference.h.
//
// acc[i] += Σ_k w_k · x_k[i] for i in [0, n), in one pass over acc with all K updates ("K-way"), so that a block stays in cache.
// With first = true acc's old content is ignored (written, not added to): no zeroing pass.
// Inputs may be unaligned (updates come off the wire). K <= kMaxFoldUpdates.
// Returns false if any w_k·x_k[i] or result is NaN or Inf (float), or any leaves [-2^62, 2^62) (fixed point); acc's block is then
// undefined and the caller restores it. With k = 0, first writes zeros. Products and sums round separately to nearest even, in the
// order of k: every instruction set gives the reference's bits. Threads: pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/tensor_layout.h"

namespace tributary::aggregator {

inline constexpr size_t kMaxFoldUpdates = 16;
inline constexpr size_t kBlockElements = 16 * 1024;  // 128 KiB of accumulators: fits L2 next to the inputs

// fp64 accumulators.
bool FoldF32(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);
bool FoldF64(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);

// 64-bit fixed point: acc[i] += llrint(w_k · x_k[i] · 2^kFixedPointBits). Integer sums do not depend on order.
inline constexpr int kFixedPointBits = 40;
bool FoldFixedF32(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);
bool FoldFixedF64(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);

// Largest |w·x| that one of `updates` (>= 1) updates may have so that no sum of that many leaves [-2^62, 2^62) in fixed point.
double FixedPointLimit(int64_t updates);

// One pass over raw little-endian floats of dtype F32 or F64: is everything finite, Σ x² (fp64; Inf if it overflows), max |x|.
// Both numbers are 0 when something is not finite.
struct ScanResult {
  bool finite = true;
  double sum_squares = 0;
  double max_abs = 0;
};
ScanResult Scan(std::span<const std::byte> floats, DType dtype);

}  // namespace tributary::aggregator
