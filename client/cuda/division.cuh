// Division by one number many times, rounded to nearest, without the slow path that CUDA's own has for arguments at the ends of the range: its
// branch keeps the compiler from working on several elements at a time. For numbers between 2^-100 and 2^100, and quotients that are normal.
// Threads: pure.
#pragma once

namespace tributary::client {

// a/b. With b's reciprocal rounded to nearest, one step of correction gives the quotient rounded to nearest (Markstein 1990, Theorem 5), as
// long as nothing on the way leaves the normal numbers.
__device__ __forceinline__ float Quotient(float a, float b, float reciprocal) {
  const float near = __fmul_rn(a, reciprocal);
  return __fmaf_rn(__fmaf_rn(-near, b, a), reciprocal, near);
}

// 1/b rounded to nearest: what the device's own reciprocal does once it has looked at its argument (tests/bench/cuda_bench.py compares the two for
// every mantissa).
__device__ __forceinline__ float Reciprocal(float b) {
  float near;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(b));
  return __fmaf_rn(__fmaf_rn(-near, b, 1.0F), near, near);
}

}  // namespace tributary::client
