// A warp works on one tile of 512 elements at a time: lane l has elements 128·k + 4·l + j, as four float4. So loads and stores are whole
// lines, a quad of random words belongs to one thread, a block of int8 or int4 to one warp, and an int4 byte (elements k and k + 128 of
// its block) to one thread.
#include "client/cuda/privatise.h"

#include <algorithm>

#include "client/cuda/division.cuh"
#include "common/chacha20.h"
#include "common/normal.h"

namespace tributary::client {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRuns = 4;                 // float4s of a lane in a tile
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kQuadsOfTile = kCodeTile / 4;
constexpr int kPaddedQuads = kQuadsOfTile + kQuadsOfTile / 8;  // a gap after each eight: no bank is hit twice

struct Run {
  float x[4];
};

// kWhole here and below: all of the tile's elements are there, and nothing has to be compared with their number.
template <bool kWhole>
__device__ __forceinline__ Run Load(const float* from, size_t at, size_t elements) {
  if (kWhole || at + 4 <= elements) {
    const float4 four = *reinterpret_cast<const float4*>(from + at);
    return {{four.x, four.y, four.z, four.w}};
  }
  Run run{};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (at + j < elements) run.x[j] = from[at + j];
  }
  return run;
}

// Δ of one lane's part of a tile. The subtraction is the model's own type's: one rounding.
template <bool kWhole>
__device__ __forceinline__ void LoadTile(const float* fresh, const float* loaded, size_t elements, size_t tile, int lane, Run (&run)[kRuns]) {
#pragma unroll
  for (int k = 0; k < kRuns; ++k) run[k] = Load<kWhole>(fresh, tile * kCodeTile + 128 * k + 4 * lane, elements);
  if (loaded == nullptr) return;
  Run before[kRuns];
#pragma unroll
  for (int k = 0; k < kRuns; ++k) before[k] = Load<kWhole>(loaded, tile * kCodeTile + 128 * k + 4 * lane, elements);
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) run[k].x[j] = __fsub_rn(run[k].x[j], before[k].x[j]);
  }
}

// The lanes of tree_sum.h, added in halves; lane 0 has the sum.
__device__ __forceinline__ double SumLanes(double lane_sum) {
#pragma unroll
  for (int half = 16; half > 0; half /= 2) lane_sum = __dadd_rn(lane_sum, __shfl_down_sync(kAllLanes, lane_sum, half));
  return lane_sum;
}

__global__ void __launch_bounds__(kThreads) SquaresKernel(const float* fresh, const float* loaded, size_t elements, size_t tiles, double* sums) {
  const int lane = threadIdx.x % 32;
  for (size_t tile = size_t{blockIdx.x} * kWarps + threadIdx.x / 32; tile < tiles; tile += size_t{gridDim.x} * kWarps) {
    Run run[kRuns];
    if ((tile + 1) * kCodeTile <= elements) {
      LoadTile<true>(fresh, loaded, elements, tile, lane, run);
    } else {
      LoadTile<false>(fresh, loaded, elements, tile, lane, run);
    }
    double sum = 0;
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const double x = static_cast<double>(run[k].x[j]);
        sum = __fma_rn(x, x, sum);  // the square of a float is exact in double
      }
    }
    sum = SumLanes(sum);
    if (lane == 0) sums[tile] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) SumsKernel(const double* values, size_t count, size_t tiles, double* sums) {
  const int lane = threadIdx.x % 32;
  for (size_t tile = size_t{blockIdx.x} * kWarps + threadIdx.x / 32; tile < tiles; tile += size_t{gridDim.x} * kWarps) {
    double sum = 0;
    for (int k = 0; k < kRuns; ++k) {
      for (int j = 0; j < 4; ++j) {
        const size_t at = tile * kCodeTile + 128 * k + 4 * lane + j;
        sum = __dadd_rn(sum, at < count ? values[at] : 0.0);
      }
    }
    sum = SumLanes(sum);
    if (lane == 0) sums[tile] = sum;
  }
}

struct EncodeArguments {
  PrivatiseWork work;
  const double* sum;
  size_t first_tile, tiles;
  std::byte* codes;  // of int8 and int4: behind the scales
};

// Not above the quotient.
__device__ __forceinline__ float ClipFactor(const EncodeArguments& arguments) {
  if (arguments.work.clip <= 0) return 1.0F;
  const double norm = __dsqrt_rn(*arguments.sum);
  return norm > arguments.work.clip ? __double2float_rz(__ddiv_rn(arguments.work.clip, norm)) : 1.0F;
}

__device__ __forceinline__ int PaddedQuad(int quad) { return quad + quad / 8; }

// The words of the tile's quads into shared memory: lane l computes ChaCha20's block l of the tile, elements 16·l … 16·l + 15.
__device__ __forceinline__ void FillChaCha(const PrivatiseWork& work, size_t tile, int lane, uint4* words) {
  uint32_t block[16];
  ChaCha20Block(work.noise_key, static_cast<uint32_t>(tile * (kCodeTile / 16) + lane), block);
  __syncwarp();  // the words of the tile before are read
#pragma unroll
  for (int q = 0; q < 4; ++q) words[PaddedQuad(4 * lane + q)] = make_uint4(block[4 * q], block[4 * q + 1], block[4 * q + 2], block[4 * q + 3]);
  __syncwarp();
}

// stream.Quad(first + offset), where first is a multiple of a power of two above offset: what does not differ between the quads of a tile is
// computed once.
__device__ __forceinline__ PhiloxWords QuadOf(const PhiloxStream& stream, uint64_t first, uint32_t offset) {
  return Philox4x32(static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32),
                    {{static_cast<uint32_t>(first) | offset, static_cast<uint32_t>(first >> 32) << 8 | static_cast<uint32_t>(stream.stage), stream.client, stream.version}});
}

template <NoiseWords kNoise>
__device__ __forceinline__ void AddNoise(const PrivatiseWork& work, size_t tile, int lane, const uint4* words, Run (&run)[kRuns]) {
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
    PhiloxWords quad;
    if constexpr (kNoise == NoiseWords::kPhilox) {
      quad = QuadOf(work.noise_stream, tile * kQuadsOfTile, 32 * k + lane);
    } else {
      const uint4 four = words[PaddedQuad(32 * k + lane)];
      quad = {{four.x, four.y, four.z, four.w}};
    }
    float normals[4];
    NormalsOf(quad, normals);
    const auto deviation = static_cast<float>(work.noise_stddev);
#pragma unroll
    for (int j = 0; j < 4; ++j) run[k].x[j] = __fmaf_rn(deviation, normals[j], run[k].x[j]);
  }
}

template <bool kWhole>
__device__ __forceinline__ void StoreFloats(const PrivatiseWork& work, size_t tile, int lane, const Run (&run)[kRuns]) {
  auto* out = reinterpret_cast<float*>(work.out);
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
    const size_t at = tile * kCodeTile + 128 * k + 4 * lane;
    if (kWhole || at + 4 <= work.elements) {
      __stcs(reinterpret_cast<float4*>(out + at), make_float4(run[k].x[0], run[k].x[1], run[k].x[2], run[k].x[3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (at + j < work.elements) out[at + j] = run[k].x[j];
      }
    }
  }
}

// Two neighbours, round to nearest even. (NaN, which the norm has found, becomes another NaN than the reference's.)
__device__ __forceinline__ uint32_t Bf16Pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <bool kWhole>
__device__ __forceinline__ void StoreBf16(const PrivatiseWork& work, size_t tile, int lane, const Run (&run)[kRuns]) {
  auto* out = reinterpret_cast<uint16_t*>(work.out);
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
    const size_t at = tile * kCodeTile + 128 * k + 4 * lane;
    const uint32_t pair[2] = {Bf16Pair(run[k].x[0], run[k].x[1]), Bf16Pair(run[k].x[2], run[k].x[3])};
    if (kWhole || at + 4 <= work.elements) {
      __stcs(reinterpret_cast<uint2*>(out + at), make_uint2(pair[0], pair[1]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (at + j < work.elements) out[at + j] = static_cast<uint16_t>(pair[j / 2] >> (16 * (j % 2)));
      }
    }
  }
}

// ⌊q + u⌋ within ±levels, 1 + u in the 16 bits from bit 7 on (client/core/quantise.h). ⌊v⌋ for |v| < 2^22: added to 1.5·2^23, rounding down,
// it is the lowest byte of the sum; one less takes off the 1 of 1 + u. int4's q is within ±7, so that its sum needs no bounds. An ordinary
// quotient is at most a unit of its last place beyond ±127, which u >= 2^-17 makes up for below, not above.
template <CodeFormat kFormat, bool kOrdinary>
__device__ __forceinline__ uint32_t CodeOf(float q, uint32_t bits) {
  float v = __fadd_rn(q, __uint_as_float((bits & 0x7FFF80u) | 0x3F800040u));
  if constexpr (kFormat == CodeFormat::kInt8) v = fminf(v, 128.0F);
  if constexpr (kFormat == CodeFormat::kInt8 && !kOrdinary) v = fmaxf(-126.0F, v);
  return __float_as_uint(__fadd_rd(v, 12582911.0F));
}

// Whether Quotient serves for blocks of these largest magnitudes. For others the slow division does.
__device__ __forceinline__ bool Ordinary(float top) { return top > 0x1p-60F && top < 0x1p90F; }

// What a block's elements are divided by, or multiplied with.
template <CodeFormat kFormat, bool kOrdinary>
struct Divisor {
  static constexpr float kLevels = kFormat == CodeFormat::kInt8 ? 127 : 7;
  float scale, factor;

  __device__ __forceinline__ explicit Divisor(float top) {
    scale = kOrdinary ? Quotient(top, kLevels, 1.0F / kLevels) : __fdiv_rn(top, kLevels);
    if constexpr (kFormat == CodeFormat::kInt8) {
      factor = kOrdinary ? Reciprocal(scale) : 0.0F;
    } else if constexpr (kOrdinary) {
      factor = Quotient(kLevels, top, Reciprocal(top));
      if (__fmaf_rn(factor, top, -kLevels) > 0) factor = __int_as_float(__float_as_int(factor) - 1);  // rounded toward 0
    } else {
      factor = __fdiv_rz(kLevels, top);
    }
  }
  __device__ __forceinline__ float Of(float x) const {
    if constexpr (!kOrdinary) {
      if (!(scale > 0)) return 0.0F;
    }
    if constexpr (kFormat == CodeFormat::kInt4) return __fmul_rn(x, factor);
    return kOrdinary ? Quotient(x, scale, factor) : __fdiv_rn(x, scale);
  }
};

// The four codes of a run, each in a byte; kHalf: which half of the words is its.
template <CodeFormat kFormat, int kHalf, bool kOrdinary>
__device__ __forceinline__ uint32_t CodesOf(const Run& run, const Divisor<kFormat, kOrdinary>& divisor, const PhiloxWords& words) {
  uint32_t code[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    code[j] = CodeOf<kFormat, kOrdinary>(divisor.Of(run.x[j]), kHalf == 0 ? words.word[j] << 7 : words.word[j] >> 9);
  }
  return __byte_perm(__byte_perm(code[0], code[1], 0x0040), __byte_perm(code[2], code[3], 0x0040), 0x5410);
}

// Codes of elements that are not there: 0, as their values are.
template <CodeFormat kFormat, bool kWhole, bool kOrdinary>
__device__ __forceinline__ void StoreBlock(const EncodeArguments& arguments, size_t tile, int half, int lane, const Run& low, const Run& high, float top) {
  const PrivatiseWork& work = arguments.work;
  const size_t block = 2 * tile + half;
  if (!kWhole && block * kCodeBlock >= work.elements) return;
  const Divisor<kFormat, kOrdinary> divisor(top);
  if (lane == 0) {
    reinterpret_cast<float*>(work.out)[block] = divisor.scale;
    if (!kOrdinary && !(top < __int_as_float(0x7F800000))) *work.failed = 1;
  }
  const PhiloxWords words = QuadOf(work.rounding, tile * 64, 32 * half + lane);
  const uint32_t low_codes = CodesOf<kFormat, 0>(low, divisor, words);
  const uint32_t high_codes = CodesOf<kFormat, 1>(high, divisor, words);
  if constexpr (kFormat == CodeFormat::kInt4) {
    const uint32_t pairs = (low_codes & 0x0F0F0F0Fu) | (high_codes & 0x0F0F0F0Fu) << 4;
    __stcs(reinterpret_cast<uint32_t*>(arguments.codes + block * (kCodeBlock / 2) + 4 * lane), pairs);
  } else {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint32_t codes = part == 0 ? low_codes : high_codes;
      const size_t at = block * kCodeBlock + 128 * part + 4 * lane;
      if (kWhole || at + 4 <= work.elements) {
        __stcs(reinterpret_cast<uint32_t*>(arguments.codes + at), codes);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (at + j < work.elements) arguments.codes[at + j] = static_cast<std::byte>(codes >> (8 * j) & 0xFFu);
        }
      }
    }
  }
}

template <CodeFormat kFormat, bool kWhole>
__device__ __forceinline__ void StoreQuantised(const EncodeArguments& arguments, size_t tile, int lane, const Run (&run)[kRuns]) {
  float top[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) largest = fmaxf(largest, fmaxf(fabsf(run[2 * half].x[j]), fabsf(run[2 * half + 1].x[j])));
    // Of floats without sign the bits are in the same order. NaN: fmaxf passes it by, but only infinities can have come about.
    top[half] = __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(largest)));
  }
  if (Ordinary(top[0]) && Ordinary(top[1])) {  // one branch for both, so that their work overlaps
#pragma unroll
    for (int half = 0; half < 2; ++half) StoreBlock<kFormat, kWhole, true>(arguments, tile, half, lane, run[2 * half], run[2 * half + 1], top[half]);
  } else {
    for (int half = 0; half < 2; ++half) StoreBlock<kFormat, kWhole, false>(arguments, tile, half, lane, run[2 * half], run[2 * half + 1], top[half]);
  }
}

template <CodeFormat kFormat, NoiseWords kNoise, bool kWhole>
__device__ __forceinline__ void EncodeTile(const EncodeArguments& arguments, size_t tile, int lane, float factor, uint4* words) {
  const PrivatiseWork& work = arguments.work;
  Run run[kRuns];
  LoadTile<kWhole>(work.fresh, work.loaded, work.elements, tile, lane, run);
  if constexpr (kNoise == NoiseWords::kChaCha20) FillChaCha(work, tile, lane, words);
  if (factor != 1.0F) {
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) run[k].x[j] = __fmul_rn(run[k].x[j], factor);
    }
  }
  if constexpr (kNoise != NoiseWords::kNone) AddNoise<kNoise>(work, tile, lane, words, run);
  if constexpr (kFormat == CodeFormat::kF32) {
    StoreFloats<kWhole>(work, tile, lane, run);
  } else if constexpr (kFormat == CodeFormat::kBf16) {
    StoreBf16<kWhole>(work, tile, lane, run);
  } else {
    // What the last tile lacks got noise too and must not raise a block's scale, nor have codes.
    if constexpr (!kWhole) {
#pragma unroll
      for (int k = 0; k < kRuns; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (tile * kCodeTile + 128 * k + 4 * lane + j >= work.elements) run[k].x[j] = 0;
        }
      }
    }
    StoreQuantised<kFormat, kWhole>(arguments, tile, lane, run);
  }
}

// What waits for arithmetic gets more warps: 64 registers a thread.
template <CodeFormat kFormat, NoiseWords kNoise>
__global__ void __launch_bounds__(kThreads, kNoise == NoiseWords::kPhilox ? 4 : 2) EncodeKernel(const __grid_constant__ EncodeArguments arguments) {
  __shared__ uint4 shared_words[kNoise == NoiseWords::kChaCha20 ? kWarps * kPaddedQuads : 1];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  uint4* words = shared_words + (kNoise == NoiseWords::kChaCha20 ? warp * kPaddedQuads : 0);
  const float factor = ClipFactor(arguments);
  // From the end backwards: what the norm read last may still be in the cache.
  for (size_t turn = size_t{blockIdx.x} * kWarps + warp; turn < arguments.tiles; turn += size_t{gridDim.x} * kWarps) {
    const size_t tile = arguments.first_tile + arguments.tiles - 1 - turn;
    if ((tile + 1) * kCodeTile <= arguments.work.elements) {
      EncodeTile<kFormat, kNoise, true>(arguments, tile, lane, factor, words);
    } else {
      EncodeTile<kFormat, kNoise, false>(arguments, tile, lane, factor, words);
    }
  }
}

size_t TilesOf(size_t elements) { return (elements + kCodeTile - 1) / kCodeTile; }

// As many blocks as the device holds at a time, or as there is work for.
template <typename Kernel>
cudaError_t GridFor(Kernel kernel, size_t tiles, unsigned* blocks) {
  int device = 0, processors = 0, resident = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0); error != cudaSuccess) return error;
  const size_t wanted = (tiles + kWarps - 1) / kWarps;
  *blocks = static_cast<unsigned>(std::min<size_t>(wanted, static_cast<size_t>(processors) * static_cast<size_t>(resident)));
  return cudaSuccess;
}

template <CodeFormat kFormat, NoiseWords kNoise>
cudaError_t Launch(const EncodeArguments& arguments, cudaStream_t stream) {
  unsigned blocks = 0;
  if (const cudaError_t error = GridFor(EncodeKernel<kFormat, kNoise>, arguments.tiles, &blocks); error != cudaSuccess) return error;
  EncodeKernel<kFormat, kNoise><<<blocks, kThreads, 0, stream>>>(arguments);
  return cudaGetLastError();
}

template <CodeFormat kFormat>
cudaError_t LaunchFormat(const EncodeArguments& arguments, cudaStream_t stream) {
  switch (arguments.work.noise) {
    case NoiseWords::kNone:
      return Launch<kFormat, NoiseWords::kNone>(arguments, stream);
    case NoiseWords::kPhilox:
      return Launch<kFormat, NoiseWords::kPhilox>(arguments, stream);
    case NoiseWords::kChaCha20:
      return Launch<kFormat, NoiseWords::kChaCha20>(arguments, stream);
  }
  return cudaErrorInvalidValue;
}

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool Valid(const PrivatiseWork& work) {
  return work.fresh != nullptr && Aligned(work.fresh) && Aligned(work.loaded) && work.elements <= size_t{1} << 40 && work.scratch != nullptr;
}

size_t BlocksOf(size_t elements) { return (elements + kCodeBlock - 1) / kCodeBlock; }

}  // namespace

size_t CodeBytes(CodeFormat format, size_t elements) {
  switch (format) {
    case CodeFormat::kF32:
      return elements * sizeof(float);
    case CodeFormat::kBf16:
      return elements * 2;
    case CodeFormat::kInt8:
      return BlocksOf(elements) * sizeof(float) + elements;
    case CodeFormat::kInt4:
      return BlocksOf(elements) * (sizeof(float) + kCodeBlock / 2);
  }
  return 0;
}

size_t NormIndex(size_t elements) {
  size_t index = 0;
  for (size_t count = TilesOf(elements); count > 1; count = TilesOf(count)) index += count;
  return index;
}

size_t ScratchDoubles(size_t elements) { return NormIndex(elements) + 1; }

cudaError_t LaunchNorm(const PrivatiseWork& work, cudaStream_t stream) {
  if (work.elements == 0) return cudaMemsetAsync(work.scratch, 0, sizeof(double), stream);
  if (!Valid(work)) return cudaErrorInvalidValue;
  size_t tiles = TilesOf(work.elements);
  unsigned blocks = 0;
  if (const cudaError_t error = GridFor(SquaresKernel, tiles, &blocks); error != cudaSuccess) return error;
  SquaresKernel<<<blocks, kThreads, 0, stream>>>(work.fresh, work.loaded, work.elements, tiles, work.scratch);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const double* values = work.scratch;
  while (tiles > 1) {
    const size_t count = tiles;
    tiles = TilesOf(count);
    const auto needed = static_cast<unsigned>(std::min<size_t>((tiles + kWarps - 1) / kWarps, 1024));
    double* sums = work.scratch + (values - work.scratch) + count;
    SumsKernel<<<needed, kThreads, 0, stream>>>(values, count, tiles, sums);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    values = sums;
  }
  return cudaSuccess;
}

cudaError_t LaunchEncode(const PrivatiseWork& work, size_t first_tile, size_t tiles, cudaStream_t stream) {
  if (work.elements == 0 || tiles == 0) return cudaSuccess;
  const bool quantised = work.format == CodeFormat::kInt8 || work.format == CodeFormat::kInt4;
  if (!Valid(work) || work.out == nullptr || !Aligned(work.out) || first_tile + tiles > TilesOf(work.elements) || (quantised && work.failed == nullptr) ||
      (work.noise == NoiseWords::kChaCha20 && work.elements > size_t{1} << 34)) {
    return cudaErrorInvalidValue;
  }
  const EncodeArguments arguments{.work = work,
                                  .sum = work.scratch + NormIndex(work.elements),
                                  .first_tile = first_tile,
                                  .tiles = tiles,
                                  .codes = work.out + BlocksOf(work.elements) * sizeof(float)};
  switch (work.format) {
    case CodeFormat::kF32:
      return LaunchFormat<CodeFormat::kF32>(arguments, stream);
    case CodeFormat::kBf16:
      return LaunchFormat<CodeFormat::kBf16>(arguments, stream);
    case CodeFormat::kInt8:
      return LaunchFormat<CodeFormat::kInt8>(arguments, stream);
    case CodeFormat::kInt4:
      return LaunchFormat<CodeFormat::kInt4>(arguments, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace tributary::client
