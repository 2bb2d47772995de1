// The CUDA launchers as C functions, for cuda_bench.py, which measures them beside PyTorch in one process (ctypes).
#include <cstring>

#include "client/cuda/division.cuh"
#include "client/cuda/privatise.h"
#include "common/normal.h"

using tributary::RandomStage;
using namespace tributary::client;

__global__ void CompareRoots(unsigned long long* differences) {
  for (uint64_t n = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < uint64_t{1} << 32; n += uint64_t{gridDim.x} * blockDim.x) {
    const float x = -2.0F * tributary::normal_detail::LogOfUnit(static_cast<uint32_t>(n));
    if (__float_as_uint(tributary::normal_detail::RootOf(x)) != __float_as_uint(__fsqrt_rn(x))) atomicAdd(differences, 1ULL);
  }
}

// At the ends of the range and in its middle.
__global__ void CompareReciprocals(unsigned long long* differences) {
  for (uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x; mantissa < 1u << 23; mantissa += gridDim.x * blockDim.x) {
    for (const uint32_t exponent : {27u, 126u, 127u, 227u}) {
      const float b = __uint_as_float(exponent << 23 | mantissa);
      if (__float_as_uint(Reciprocal(b)) != __float_as_uint(__frcp_rn(b))) atomicAdd(differences, 1ULL);
    }
  }
}

extern "C" {

// Device pointers. `noise`: 0 none, 1 Philox, 2 ChaCha20. `format`: 0 f32, 1 bf16, 2 int8, 3 int4. Returns CUDA's code.
int trib_privatise(const float* fresh, const float* loaded, size_t elements, double clip, int noise, double stddev, int format, void* out, double* scratch,
                   uint32_t* failed, cudaStream_t stream) {
  PrivatiseWork work;
  work.fresh = fresh;
  work.loaded = loaded;
  work.elements = elements;
  work.clip = clip;
  work.noise = static_cast<NoiseWords>(noise);
  work.noise_stddev = stddev;
  work.noise_stream = {.seed = 1, .client = 2, .version = 3, .stage = RandomStage::kNoise};
  for (uint32_t i = 0; i < 8; ++i) work.noise_key[i] = 0x9E3779B9u * (i + 1);
  work.rounding = {.seed = 1, .client = 2, .version = 3, .stage = RandomStage::kRounding};
  work.format = static_cast<CodeFormat>(format);
  work.out = static_cast<std::byte*>(out);
  work.scratch = scratch;
  work.failed = failed;
  if (const cudaError_t error = LaunchNorm(work, stream); error != cudaSuccess) return error;
  return LaunchEncode(work, 0, (elements + kCodeTile - 1) / kCodeTile, stream);
}

// How many of all words give another radius than the device's own square root, and of all mantissas another reciprocal than its own:
// `differences` are two of the device's, zeroed by the caller.
int trib_differences(unsigned long long* differences, cudaStream_t stream) {
  CompareRoots<<<4096, 256, 0, stream>>>(differences);
  CompareReciprocals<<<1024, 256, 0, stream>>>(differences + 1);
  return cudaGetLastError();
}

// The first pass alone.
int trib_norm(const float* fresh, const float* loaded, size_t elements, double* scratch, cudaStream_t stream) {
  PrivatiseWork work;
  work.fresh = fresh;
  work.loaded = loaded;
  work.elements = elements;
  work.scratch = scratch;
  return LaunchNorm(work, stream);
}

size_t trib_code_bytes(int format, size_t elements) { return CodeBytes(static_cast<CodeFormat>(format), elements); }
size_t trib_scratch_doubles(size_t elements) { return ScratchDoubles(elements); }
size_t trib_norm_index(size_t elements) { return NormIndex(elements); }

}  // extern "C"
