// From trained weights to the bytes that travel, on the GPU: Δ = fresh − loaded → norm → clip → noise → codec, in two passes over
// memory: the norm is one (8 bytes read an element), the rest the other (8 read, and what is written).
//
// The result is bit for bit that of EncodeUpdate (client/core/update_pipeline.h), the reference: the norm in the order of
// common/tree_sum.h, noise by common/normal.h from Philox or ChaCha20 by the element's number, codes as in common/update_codec.h.
// The second pass may be launched for parts of the elements, so that copying a part away overlaps with the next one.
//
// Raw device pointers and a stream; nothing is allocated, nothing waits. Lifetime: what is passed is used until the stream is past
// the launch. Threads: any. Errors: cudaErrorInvalidValue for what the comments below exclude; CUDA's own otherwise. Numbers that are
// not finite are found, not refused: the caller reads `sum` and `failed` afterwards.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/philox.h"

namespace tributary::client {

enum class CodeFormat { kF32, kBf16, kInt8, kInt4 };
enum class NoiseWords { kNone, kPhilox, kChaCha20 };

// Elements are worked on in tiles: two blocks of int8 or int4, one tile of tree_sum.h.
inline constexpr size_t kCodeTile = 512;
inline constexpr size_t kCodeBlock = 256;

struct PrivatiseWork {
  const float* fresh = nullptr;    // weights after training, 16-byte aligned
  const float* loaded = nullptr;   // weights before it, 16-byte aligned; null: `fresh` is Δ itself
  size_t elements = 0;             // trainable ones; at most 2^40

  double clip = 0;                 // 0: no clipping
  NoiseWords noise = NoiseWords::kNone;
  double noise_stddev = 0;
  PhiloxStream noise_stream{};     // of kPhilox
  uint32_t noise_key[8] = {};      // of kChaCha20: at most 2^34 elements
  PhiloxStream rounding{};         // of int8 and int4

  CodeFormat format = CodeFormat::kF32;
  // kF32: float × elements. kBf16: 2 bytes × elements. kInt8, kInt4: a scale (float) a block, then the codes (update_codec.h).
  std::byte* out = nullptr;        // CodeBytes(), 16-byte aligned
  double* scratch = nullptr;       // ScratchDoubles(elements)
  uint32_t* failed = nullptr;      // set to 1 where a value is not finite once its noise is added; the caller zeroes it before
};

size_t CodeBytes(CodeFormat format, size_t elements);
size_t ScratchDoubles(size_t elements);
// Where in `scratch` ‖Δ‖² is, once LaunchNorm has run.
size_t NormIndex(size_t elements);

// Writes ‖Δ‖² to scratch[NormIndex(elements)].
cudaError_t LaunchNorm(const PrivatiseWork& work, cudaStream_t stream);
// Clips by that norm, adds noise and encodes tiles [first_tile, first_tile + tiles) of the elements. LaunchNorm comes first unless
// clip is 0 and nobody wants the norm.
cudaError_t LaunchEncode(const PrivatiseWork& work, size_t first_tile, size_t tiles, cudaStream_t stream);

}  // namespace tributary::client
