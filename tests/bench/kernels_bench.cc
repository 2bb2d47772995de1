// Accumulation of K updates of 11 M floats (a ResNet-18) in blocks: fp64 accumulators (what we use), fp32 with Kahan
// compensation, plain fp32, and 64-bit fixed point. bytes_per_second counts update bytes read. One range, one thread.
// The fp32 arms exist only here, with the same blocking, unrolling and finiteness check: they are what the decision was taken against.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "aggregator/core/kernels.h"
#include "aggregator/core/kernels_reference.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/kernels_bench.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace tributary::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

bool PlainF32Target(float* HWY_RESTRICT acc, const float* const* xs, const double* weights, size_t k, size_t n, bool first) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto poison = hn::Zero(d);
  for (size_t i = 0; i + 4 * lanes <= n; i += 4 * lanes) {
    auto a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
    if (!first) {
      a0 = hn::LoadU(d, acc + i);
      a1 = hn::LoadU(d, acc + i + lanes);
      a2 = hn::LoadU(d, acc + i + 2 * lanes);
      a3 = hn::LoadU(d, acc + i + 3 * lanes);
    }
    for (size_t j = 0; j < k; ++j) {
      const auto w = hn::Set(d, static_cast<float>(weights[j]));
      a0 = hn::Add(a0, hn::Mul(w, hn::LoadU(d, xs[j] + i)));
      a1 = hn::Add(a1, hn::Mul(w, hn::LoadU(d, xs[j] + i + lanes)));
      a2 = hn::Add(a2, hn::Mul(w, hn::LoadU(d, xs[j] + i + 2 * lanes)));
      a3 = hn::Add(a3, hn::Mul(w, hn::LoadU(d, xs[j] + i + 3 * lanes)));
    }
    hn::StoreU(a0, d, acc + i);
    hn::StoreU(a1, d, acc + i + lanes);
    hn::StoreU(a2, d, acc + i + 2 * lanes);
    hn::StoreU(a3, d, acc + i + 3 * lanes);
    poison = hn::Add(poison, hn::Add(hn::Add(hn::Sub(a0, a0), hn::Sub(a1, a1)), hn::Add(hn::Sub(a2, a2), hn::Sub(a3, a3))));
  }
  return hn::AllFalse(d, hn::IsNaN(poison));
}

// Sum and compensation side by side: 8 bytes an element, as fp64.
bool CompensatedF32Target(float* HWY_RESTRICT acc, float* HWY_RESTRICT lost, const float* const* xs, const double* weights, size_t k, size_t n,
                          bool first) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto poison = hn::Zero(d);
  for (size_t i = 0; i + 2 * lanes <= n; i += 2 * lanes) {
    auto a0 = hn::Zero(d), a1 = a0, c0 = a0, c1 = a0;
    if (!first) {
      a0 = hn::LoadU(d, acc + i);
      a1 = hn::LoadU(d, acc + i + lanes);
      c0 = hn::LoadU(d, lost + i);
      c1 = hn::LoadU(d, lost + i + lanes);
    }
    for (size_t j = 0; j < k; ++j) {
      const auto w = hn::Set(d, static_cast<float>(weights[j]));
      const auto y0 = hn::Sub(hn::Mul(w, hn::LoadU(d, xs[j] + i)), c0);
      const auto y1 = hn::Sub(hn::Mul(w, hn::LoadU(d, xs[j] + i + lanes)), c1);
      const auto t0 = hn::Add(a0, y0);
      const auto t1 = hn::Add(a1, y1);
      c0 = hn::Sub(hn::Sub(t0, a0), y0);
      c1 = hn::Sub(hn::Sub(t1, a1), y1);
      a0 = t0;
      a1 = t1;
    }
    hn::StoreU(a0, d, acc + i);
    hn::StoreU(a1, d, acc + i + lanes);
    hn::StoreU(c0, d, lost + i);
    hn::StoreU(c1, d, lost + i + lanes);
    poison = hn::Add(poison, hn::Add(hn::Sub(a0, a0), hn::Sub(a1, a1)));
  }
  return hn::AllFalse(d, hn::IsNaN(poison));
}

}  // namespace HWY_NAMESPACE
}  // namespace tributary::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tributary::bench {
namespace {

HWY_EXPORT(PlainF32Target);
HWY_EXPORT(CompensatedF32Target);

using aggregator::kBlockElements;
constexpr size_t kElements = 671 * kBlockElements;  // 10,993,664: whole blocks

enum class Arm { kFloat64, kCompensated32, kPlain32, kFixedPoint, kReference };

struct Data {
  explicit Data(size_t k) : updates(k, std::vector<float>(kElements)), weights(k) {
    std::mt19937_64 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (size_t j = 0; j < k; ++j) {
      for (float& x : updates[j]) x = uniform(random);
      weights[j] = 1.0 + static_cast<double>(random() % 1000);
    }
  }
  std::vector<std::vector<float>> updates;
  std::vector<double> weights;
};

struct Sums {
  std::vector<double> f64;
  std::vector<int64_t> fixed;
  std::vector<float> sum, lost;
  explicit Sums(Arm arm) {
    if (arm == Arm::kFloat64 || arm == Arm::kReference) f64.resize(kElements);
    if (arm == Arm::kFixedPoint) fixed.resize(kElements);
    if (arm == Arm::kPlain32 || arm == Arm::kCompensated32) sum.resize(kElements);
    if (arm == Arm::kCompensated32) lost.resize(kElements);
  }
};

bool FoldAll(Arm arm, const Data& data, Sums* sums, bool first) {
  const size_t k = data.updates.size();
  bool ok = true;
  std::vector<const float*> xs(k);
  std::vector<const std::byte*> bytes(k);
  for (size_t i = 0; i < kElements; i += kBlockElements) {
    for (size_t j = 0; j < k; ++j) {
      xs[j] = data.updates[j].data() + i;
      bytes[j] = reinterpret_cast<const std::byte*>(xs[j]);
    }
    switch (arm) {
      case Arm::kFloat64:
        ok = aggregator::FoldF32(sums->f64.data() + i, bytes.data(), data.weights.data(), k, kBlockElements, first) && ok;
        break;
      case Arm::kReference:
        ok = reference::FoldF32(sums->f64.data() + i, bytes.data(), data.weights.data(), k, kBlockElements, first) && ok;
        break;
      case Arm::kFixedPoint:
        ok = aggregator::FoldFixedF32(sums->fixed.data() + i, bytes.data(), data.weights.data(), k, kBlockElements, first) && ok;
        break;
      case Arm::kPlain32:
        ok = HWY_DYNAMIC_DISPATCH(PlainF32Target)(sums->sum.data() + i, xs.data(), data.weights.data(), k, kBlockElements, first) && ok;
        break;
      case Arm::kCompensated32:
        ok = HWY_DYNAMIC_DISPATCH(CompensatedF32Target)(sums->sum.data() + i, sums->lost.data() + i, xs.data(), data.weights.data(), k,
                                                        kBlockElements, first) && ok;
        break;
    }
  }
  return ok;
}

// ‖a − ref‖∞ / ‖ref‖∞ against long double sums, over the first block.
double MaxNormError(Arm arm, const Data& data, const Sums& sums) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < kBlockElements; ++i) {
    long double exact = 0;
    for (size_t j = 0; j < data.updates.size(); ++j) exact += static_cast<long double>(data.weights[j]) * data.updates[j][i];
    double got = 0;
    if (arm == Arm::kFloat64 || arm == Arm::kReference) got = sums.f64[i];
    if (arm == Arm::kFixedPoint) got = std::ldexp(static_cast<double>(sums.fixed[i]), -aggregator::kFixedPointBits);
    if (arm == Arm::kPlain32 || arm == Arm::kCompensated32) got = sums.sum[i];
    error = std::fmax(error, std::abs(got - static_cast<double>(exact)));
    norm = std::fmax(norm, std::abs(static_cast<double>(exact)));
  }
  return error / norm;
}

void Fold(benchmark::State& state, Arm arm, bool fresh) {
  const Data data(static_cast<size_t>(state.range(0)));
  Sums sums(arm);
  if (!FoldAll(arm, data, &sums, true)) state.SkipWithError("not finite");
  const double error = MaxNormError(arm, data, sums);
  int folded = 1;
  for (auto _ : state) {
    benchmark::DoNotOptimize(FoldAll(arm, data, &sums, fresh || ++folded % 64 == 0));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * static_cast<int64_t>(kElements * sizeof(float)));
  state.counters["max_norm_error"] = error;
}

#define TRIB_FOLD_BENCH(name, arm)                                                                                     \
  BENCHMARK_CAPTURE(Fold, name##_add, Arm::arm, false)->Arg(1)->Arg(8)->Unit(benchmark::kMillisecond)->MinTime(1.0);   \
  BENCHMARK_CAPTURE(Fold, name##_first, Arm::arm, true)->Arg(1)->Arg(8)->Unit(benchmark::kMillisecond)->MinTime(1.0)
TRIB_FOLD_BENCH(fp64, kFloat64);
TRIB_FOLD_BENCH(compensated_fp32, kCompensated32);
TRIB_FOLD_BENCH(plain_fp32, kPlain32);
TRIB_FOLD_BENCH(fixed_point, kFixedPoint);
TRIB_FOLD_BENCH(reference_fp64, kReference);

void ScanAll(benchmark::State& state) {
  const Data data(1);
  for (auto _ : state) benchmark::DoNotOptimize(aggregator::Scan(std::as_bytes(std::span(data.updates[0])), DType::kF32));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kElements * sizeof(float)));
}
BENCHMARK(ScanAll)->Unit(benchmark::kMillisecond)->MinTime(1.0);

}  // namespace
}  // namespace tributary::bench
#endif  // HWY_ONCE
