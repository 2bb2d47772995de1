#include "aggregator/core/reducer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "aggregator/core/fixed_point.h"
#include "common/check.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kStateBytes = 8;  // a double, or an integer of fixed point

class MeanReducer final : public Reducer {
 public:
  MeanReducer(DType dtype, Arithmetic arithmetic) : dtype_(dtype), arithmetic_(arithmetic) {}

  size_t state_bytes_per_element() const override { return kStateBytes; }

  bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const override {
    const size_t element_bytes = DTypeBytes(dtype_);
    return ByStretches(state, {.encoding = nullptr, .first = first, .count = count}, updates, fresh,
                       [&](std::byte* to, const CodedRange& range, std::span<const UpdateView> some, const double* weights, bool first_of_all) {
                         std::array<const std::byte*, kMaxFoldUpdates> xs{};
                         for (size_t j = 0; j < some.size(); ++j) xs[j] = some[j].flat + range.first * element_bytes;
                         return Fold(to, xs.data(), weights, some.size(), range.count, first_of_all);
                       });
  }

  bool FoldEncoded(std::byte* state, const CodedRange& range, std::span<const UpdateView> updates, bool fresh) const override {
    return ByStretches(state, range, updates, fresh,
                       [&](std::byte* to, const CodedRange& part, std::span<const UpdateView> some, const double* weights, bool first_of_all) {
                         std::array<const std::byte*, kMaxFoldUpdates> xs{};
                         for (size_t j = 0; j < some.size(); ++j) xs[j] = some[j].flat;
                         const std::span<const std::byte* const> flats(xs.data(), some.size());
                         return arithmetic_ == Arithmetic::kFloat64 ? FoldCoded(reinterpret_cast<double*>(to), part, flats, weights, first_of_all)
                                                                    : FoldCodedFixed(reinterpret_cast<int64_t*>(to), part, flats, weights, first_of_all);
                       });
  }

  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override {
    if (arithmetic_ == Arithmetic::kFloat64) {
      const double one = 1.0;
      return FoldF64(reinterpret_cast<double*>(state), &other, &one, 1, count, false);
    }
    auto* sums = reinterpret_cast<int64_t*>(state);
    const auto* more = reinterpret_cast<const int64_t*>(other);
    bool ok = true;
    for (size_t i = 0; i < count; ++i) {
      int64_t sum = 0;
      ok = !__builtin_add_overflow(sums[i], more[i], &sum) && sum >= -kFixedPointBound && sum < kFixedPointBound && ok;
      sums[i] = sum;
    }
    return ok;
  }

  void ReportBlock(const std::byte* state, size_t count, double sum_weight, double* mean) const override {
    if (arithmetic_ == Arithmetic::kFloat64) {
      const auto* sums = reinterpret_cast<const double*>(state);
      for (size_t i = 0; i < count; ++i) mean[i] = sums[i] / sum_weight;
      return;
    }
    const auto* sums = reinterpret_cast<const int64_t*>(state);
    const double unit = std::ldexp(1.0, -kFixedPointBits);
    for (size_t i = 0; i < count; ++i) mean[i] = static_cast<double>(sums[i]) * unit / sum_weight;
  }

 private:
  // fold(state, range, updates, weights, fresh) for at most kMaxFoldUpdates updates at once, over stretches in which each has one weight.
  template <typename FoldSome>
  static bool ByStretches(std::byte* state, const CodedRange& range, std::span<const UpdateView> updates, bool fresh, const FoldSome& fold) {
    std::array<double, kMaxFoldUpdates> weights{};
    size_t done = 0;
    do {
      const std::span<const UpdateView> some = updates.subspan(done, std::min(kMaxFoldUpdates, updates.size() - done));
      for (CodedRange part = range; part.count > 0; part.first += part.count, part.count = range.first + range.count - part.first) {
        for (size_t j = 0; j < some.size(); ++j) {
          weights[j] = some[j].weight;
          if (some[j].runs.empty()) continue;
          const WeightRun& run = RunAt(some[j].runs, part.first);
          weights[j] *= run.factor;
          part.count = std::min(part.count, run.end - part.first);
        }
        if (!fold(state + (part.first - range.first) * kStateBytes, part, some, weights.data(), fresh && done == 0)) return false;
      }
      done += some.size();
    } while (done < updates.size());
    return true;
  }

  bool Fold(std::byte* state, const std::byte* const* xs, const double* weights, size_t k, size_t count, bool first) const {
    if (arithmetic_ == Arithmetic::kFloat64) {
      auto* acc = reinterpret_cast<double*>(state);
      return dtype_ == DType::kF32 ? FoldF32(acc, xs, weights, k, count, first) : FoldF64(acc, xs, weights, k, count, first);
    }
    auto* acc = reinterpret_cast<int64_t*>(state);
    return dtype_ == DType::kF32 ? FoldFixedF32(acc, xs, weights, k, count, first) : FoldFixedF64(acc, xs, weights, k, count, first);
  }

  DType dtype_;
  Arithmetic arithmetic_;
};

class CodedReducer final : public Reducer {
 public:
  CodedReducer(std::unique_ptr<Reducer> inner, const UpdateEncoding& encoding) : inner_(std::move(inner)), encoding_(encoding) {}
  size_t state_bytes_per_element() const override { return inner_->state_bytes_per_element(); }
  bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const override {
    return inner_->FoldEncoded(state, {.encoding = &encoding_, .first = first, .count = count}, updates, fresh);
  }
  bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const override { return inner_->MergeBlock(state, other, count); }
  void ReportBlock(const std::byte* state, size_t count, double sum_weight, double* mean) const override {
    inner_->ReportBlock(state, count, sum_weight, mean);
  }

 private:
  std::unique_ptr<Reducer> inner_;
  UpdateEncoding encoding_;
};

}  // namespace

bool Reducer::FoldEncoded(std::byte* state, const CodedRange& range, std::span<const UpdateView> updates, bool fresh) const {
  std::vector<float> decoded(range.count);
  // FoldBlock looks at flat + first·4. As a number, so that no pointer outside the array is ever formed.
  const uintptr_t flat = reinterpret_cast<uintptr_t>(decoded.data()) - range.first * sizeof(float);
  for (size_t j = 0; j < updates.size(); ++j) {
    DecodeRange(*range.encoding, updates[j].flat, range.first, decoded);
    const UpdateView view{.flat = reinterpret_cast<const std::byte*>(flat), .weight = updates[j].weight, .runs = updates[j].runs};
    if (!FoldBlock(state, range.first, range.count, {&view, 1}, fresh && j == 0)) return false;
  }
  return true;
}

std::unique_ptr<Reducer> WithCodec(std::unique_ptr<Reducer> inner, const UpdateEncoding& encoding) {
  if (encoding.codec == Codec::kPlain) return inner;
  return std::make_unique<CodedReducer>(std::move(inner), encoding);
}

std::unique_ptr<Reducer> MakeMeanReducer(DType dtype, Arithmetic arithmetic) {
  TRIB_CHECK(dtype == DType::kF32 || dtype == DType::kF64, "a mean is over floats, not {}", DTypeName(dtype));
  return std::make_unique<MeanReducer>(dtype, arithmetic);
}

double OrderFreeSum(std::vector<double> weights) {
  std::sort(weights.begin(), weights.end());
  double sum = 0;
  for (const double weight : weights) sum += weight;
  return sum;
}

void FoldCounters(int64_t* acc, const std::byte* counters, size_t count, bool fresh) {
  for (size_t i = 0; i < count; ++i) {
    int64_t value;
    std::memcpy(&value, counters + i * sizeof(value), sizeof(value));
    acc[i] = fresh ? value : std::max(acc[i], value);
  }
}

}  // namespace tributary::aggregator
