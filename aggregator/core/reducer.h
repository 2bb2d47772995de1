// The half of a strategy that every worker runs: un-normalised sums over a range of the float region, block by block.
//
// A reducer has no memory of its own. Accumulators ("state") are the caller's, 8-byte aligned: a shared-memory slab in a worker
// process, a vector in Partial (partial.h). A block is at most kBlockElements elements; working in blocks keeps the accumulators in cache
// and makes a crash repairable (the worker saves one block before it changes it).
// Source of the algebra: dataplane.md §7 — accumulate, merge, report; only the root divides.
// Threads: const methods, safe from any number of threads on disjoint states.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "aggregator/core/coded_kernels.h"
#include "aggregator/core/group_weights.h"
#include "aggregator/core/kernels.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

// One update in the flat form of common/tensor_layout.h, or encoded (WithCodec); `weight` finite and > 0. The bytes are borrowed for the
// call.
struct UpdateView {
  const std::byte* flat = nullptr;
  double weight = 0;
  std::span<const WeightRun> runs{};  // up to the end of the float region: by them times `weight`; none: all have it
};

enum class Arithmetic : uint8_t { kFloat64 = 1, kFixedPoint = 2 };

// call(i) for each i in [0, count), on threads of the caller's choice; back when all have returned.
using ForEach = std::function<void(size_t count, const std::function<void(size_t)>& call)>;

class Reducer {
 public:
  virtual ~Reducer() = default;
  // Accumulator bytes per float element of the model.
  virtual size_t state_bytes_per_element() const = 0;
  // Folds elements [first, first + count) of the float region of every update. `state` is the state of exactly these elements.
  // `fresh`: the state holds nothing yet. False: something was not finite or overflowed; the state of the block is undefined.
  virtual bool FoldBlock(std::byte* state, size_t first, size_t count, std::span<const UpdateView> updates, bool fresh) const = 0;
  // The same for updates in `encoding`, of an F32 job. Here: decoded piece by piece, then FoldBlock.
  virtual bool FoldEncoded(std::byte* state, const CodedRange& range, std::span<const UpdateView> updates, bool fresh) const;
  // state += other, `count` elements. False on overflow.
  virtual bool MergeBlock(std::byte* state, const std::byte* other, size_t count) const = 0;
  // mean[i] = state[i] / sum_weight; sum_weight > 0.
  virtual void ReportBlock(const std::byte* state, size_t count, double sum_weight, double* mean) const = 0;
};

// Σ w·x with fp64 or 64-bit fixed-point accumulators, x of type F32 or F64.
std::unique_ptr<Reducer> MakeMeanReducer(DType dtype, Arithmetic arithmetic);

// The reducer for updates that come encoded: FoldBlock takes them so, all else is `inner`'s.
std::unique_ptr<Reducer> WithCodec(std::unique_ptr<Reducer> inner, const UpdateEncoding& encoding);

// Σ w that does not depend on the order of arrival: sums in ascending order. Reproducible commits need it as much as the sums of w·x.
double OrderFreeSum(std::vector<double> weights);

// Counters are not averaged: acc[i] = max(acc[i], value[i]). `counters` are raw little-endian i64, possibly unaligned.
void FoldCounters(int64_t* acc, const std::byte* counters, size_t count, bool fresh);

}  // namespace tributary::aggregator
