// A thread an element at a time, over all terms: the sums are read and written once, each delta read once, in full lines.
#include "client/cuda/fold.h"

#include <algorithm>

namespace tributary::client {
namespace {

constexpr unsigned kThreads = 256;
constexpr size_t kMaxBlocks = 4096;
constexpr double kFixedScale = 1099511627776.0;            // 2^40: kFixedPointBits
constexpr double kFixedBound = 4611686018427387904.0;      // 2^62: kFixedPointBound
constexpr long long kFixedBoundInteger = 1LL << 62;

struct Terms {
  FoldTerm at[kMaxFoldTerms];
  int count;
};

struct InFloat64 {
  using Sum = double;
  static __device__ __forceinline__ bool Add(double weight, float delta, double* sum) {
    *sum = __dadd_rn(*sum, __dmul_rn(weight, static_cast<double>(delta)));
    return true;
  }
  // An infinity or NaN stays one, whatever is added.
  static __device__ __forceinline__ bool Holds(double sum) { return isfinite(sum); }
};

struct InFixedPoint {
  using Sum = long long;
  static __device__ __forceinline__ bool Add(double weight, float delta, long long* sum) {
    const double scaled = __dmul_rn(__dmul_rn(weight, static_cast<double>(delta)), kFixedScale);
    if (!(fabs(scaled) < kFixedBound)) return false;
    *sum += __double2ll_rn(scaled);  // both below 2^62: no wrap
    return *sum >= -kFixedBoundInteger && *sum < kFixedBoundInteger;
  }
  static __device__ __forceinline__ bool Holds(long long) { return true; }
};

template <typename Arithmetic>
__global__ void __launch_bounds__(kThreads) FoldKernel(const __grid_constant__ Terms terms, size_t elements, bool first, typename Arithmetic::Sum* sums, uint32_t* failed) {
  const size_t stride = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < elements; i += stride) {
    typename Arithmetic::Sum sum = first ? 0 : sums[i];
    bool ok = true;
#pragma unroll 8
    for (int j = 0; j < terms.count; ++j) ok = ok && Arithmetic::Add(terms.at[j].weight, terms.at[j].delta[i], &sum);
    sums[i] = sum;
    if (!ok || !Arithmetic::Holds(sum)) *failed = 1;
  }
}

template <typename Arithmetic>
cudaError_t Launch(const FoldWork& work, typename Arithmetic::Sum* sums, cudaStream_t stream) {
  if (work.terms.empty() || work.terms.size() > kMaxFoldTerms || work.elements == 0 || sums == nullptr || work.failed == nullptr) return cudaErrorInvalidValue;
  Terms terms{};
  std::copy(work.terms.begin(), work.terms.end(), terms.at);
  terms.count = static_cast<int>(work.terms.size());
  const size_t blocks = std::min((work.elements + kThreads - 1) / kThreads, kMaxBlocks);
  FoldKernel<Arithmetic><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(terms, work.elements, work.first, sums, work.failed);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchFold(const FoldWork& work, double* sums, cudaStream_t stream) { return Launch<InFloat64>(work, sums, stream); }

cudaError_t LaunchFoldFixed(const FoldWork& work, int64_t* sums, cudaStream_t stream) {
  static_assert(sizeof(int64_t) == sizeof(long long));
  return Launch<InFixedPoint>(work, reinterpret_cast<long long*>(sums), stream);
}

}  // namespace tributary::client
