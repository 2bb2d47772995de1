#include "aggregator/core/server_step.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "common/check.h"

namespace tributary::aggregator {
namespace {

// Whole blocks without branches inside, so that the compiler makes vector code of them; memcpy because a model may lie unaligned.
template <typename T>
void LoadBlock(const std::byte* flat, size_t first, std::span<double> out) {
  const std::byte* from = flat + first * sizeof(T);
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    out[i] = static_cast<double>(value);
  }
}

void LoadBlock(DType dtype, const std::byte* flat, size_t first, std::span<double> out) {
  dtype == DType::kF64 ? LoadBlock<double>(flat, first, out) : LoadBlock<float>(flat, first, out);
}

// Stores `values` rounded to T; false if a rounded value is not finite.
template <typename T>
bool StoreBlock(std::byte* flat, size_t first, std::span<const double> values) {
  std::byte* to = flat + first * sizeof(T);
  bool finite = true;
  for (size_t i = 0; i < values.size(); ++i) {
    const T rounded = static_cast<T>(values[i]);
    finite &= std::fabs(rounded) <= std::numeric_limits<T>::max();
    std::memcpy(to + i * sizeof(T), &rounded, sizeof(T));
  }
  return finite;
}

bool IsFiniteAs(DType dtype, double value) {
  return dtype == DType::kF64 ? std::isfinite(value) : std::isfinite(static_cast<float>(value));
}

// "tensor 'fc.weight', element 3" for a float index.
std::string Whereabouts(const TensorLayout& layout, size_t index) {
  size_t first = 0;
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (index < first + tensor.elements) return fmt::format("tensor '{}', element {}", tensor.spec.name, index - first);
    first += tensor.elements;
  }
  return fmt::format("element {}", index);
}

std::vector<double> ReportAll(const Reducer& reducer, std::span<const StatePiece> pieces, size_t count) {
  std::vector<double> all(count);
  for (const StatePiece& piece : pieces) reducer.ReportBlock(piece.state, piece.count, 1.0, all.data() + piece.first);
  return all;
}

// The step over stretches of one scale each; `sums` are the block's. Where it is 0 neither model nor state moves.
void ApplyScaled(const ServerStep& step, const StepBlock& block, std::span<const WeightRun> scales, std::span<double> sums, StrategyState& state) {
  const size_t count = block.model.size();
  for (size_t from = 0, next = 0; from < count; from = next) {
    const WeightRun& run = RunAt(scales, block.first + from);
    next = std::min(count, run.end - block.first);
    if (run.factor == 0) continue;
    for (size_t i = from; i < next; ++i) sums[i] *= run.factor;
    StepBlock part = block;
    part.first = block.first + from;
    part.model = block.model.subspan(from, next - from);
    part.sums = block.sums.subspan(from, next - from);
    step.ApplyBlock(part, state);
  }
}

absl::Status CheckPieces(std::span<const StatePiece> pieces, size_t float_count) {
  size_t next = 0;
  for (const StatePiece& piece : pieces) {
    if (piece.first != next) {
      return InvalidArgument("the aggregate's pieces leave a gap or overlap: expected one from element {}, got [{}, {})", next,
                             piece.first, piece.first + piece.count);
    }
    next += piece.count;
  }
  if (next != float_count) return InvalidArgument("the aggregate's pieces end at element {}, expected {}", next, float_count);
  return absl::OkStatus();
}

}  // namespace

absl::Status PrepareState(const ServerStep& step, const TensorLayout& layout, std::span<const std::byte> model, StrategyState* state) {
  const size_t trainable = layout.trainable_count();
  for (const std::string& name : step.state_vectors()) {
    const auto [it, fresh] = state->vectors.try_emplace(name);
    if (fresh && step.starts_as_model(name)) {
      if (model.size() != layout.total_bytes()) return InvalidArgument("the initial model: expected {} bytes, got {}", layout.total_bytes(), model.size());
      it->second.resize(trainable);
      LoadBlock(layout.float_dtype(), model.data(), 0, it->second);
    } else if (fresh) {
      it->second.assign(trainable, step.start_of(name));
    }
    if (it->second.size() != trainable) {
      return InvalidArgument("strategy vector '{}': expected {} elements, got {}", name, trainable, it->second.size());
    }
  }
  return absl::OkStatus();
}

bool StoreFloats(DType dtype, std::span<const double> values, std::span<std::byte> out) {
  return dtype == DType::kF64 ? StoreBlock<double>(out.data(), 0, values) : StoreBlock<float>(out.data(), 0, values);
}

absl::Status ApplyServerStep(const ServerStep& step, const StepInput& input, StrategyState& state, std::span<std::byte> next) {
  const TensorLayout& layout = *input.layout;
  const double sum_weight = input.facts.sum_weight;
  if (!(sum_weight > 0) || !std::isfinite(sum_weight)) return InvalidArgument("sum of weights must be finite and > 0, got {}", sum_weight);
  TRIB_ASSIGN_OR_RETURN(const double divisor, step.Divisor(input.facts));
  if (!(divisor > 0) || !std::isfinite(divisor)) return InvalidArgument("what the sums are divided by must be finite and > 0, got {}", divisor);
  if (input.previous.size() != layout.total_bytes() || next.size() != layout.total_bytes()) {
    return InvalidArgument("a model of this layout has {} bytes; got {} before and {} after the step", layout.total_bytes(),
                           input.previous.size(), next.size());
  }
  if (step.needs_base() && input.base.size() != layout.total_bytes()) {
    return InvalidArgument("the model that the update starts from: expected {} bytes, got {}", layout.total_bytes(), input.base.size());
  }
  if (!input.counters.empty() && input.counters.size() != layout.counter_count()) {
    return InvalidArgument("expected {} counters, got {}", layout.counter_count(), input.counters.size());
  }
  std::vector<StatePiece> sorted(input.pieces.begin(), input.pieces.end());
  std::erase_if(sorted, [](const StatePiece& piece) { return piece.count == 0; });
  std::sort(sorted.begin(), sorted.end(), [](const StatePiece& a, const StatePiece& b) { return a.first < b.first; });
  const size_t extra = (input.groups - 1) * layout.trainable_count();
  const size_t own = input.without_buffers ? layout.trainable_count() : layout.summed_count();
  const size_t summed = input.spread == nullptr ? own + extra : sorted.empty() ? 0 : sorted.back().first + sorted.back().count;
  TRIB_RETURN_IF_ERROR(CheckPieces(sorted, summed));
  TRIB_RETURN_IF_ERROR(CheckRuns(input.scales, own));
  if (!input.scales.empty() && (input.groups != 1 || input.spread != nullptr || step.needs_base())) {
    return InvalidArgument("scales are for sums over the model's own elements, of several updates");
  }
  TRIB_RETURN_IF_ERROR(PrepareState(step, layout, input.previous, &state));
  const Reducer* reducer = input.reducer;
  std::unique_ptr<Reducer> plain;
  std::vector<double> first_group, second_group;
  if (input.groups == 2) {
    // Elements i and trainable + i may lie in different pieces: both groups are laid out whole.
    const std::vector<double> all = ReportAll(*reducer, sorted, own + extra);
    const auto split = all.begin() + static_cast<ptrdiff_t>(layout.trainable_count());
    first_group.assign(all.begin(), split);
    second_group.assign(split, split + static_cast<ptrdiff_t>(extra));
    first_group.insert(first_group.end(), split + static_cast<ptrdiff_t>(extra), all.end());
  } else if (input.spread != nullptr) {
    TRIB_ASSIGN_OR_RETURN(first_group, input.spread->Spread(layout, input.facts, ReportAll(*reducer, sorted, summed)));
  }
  if (!first_group.empty()) {
    plain = MakeMeanReducer(DType::kF64, Arithmetic::kFloat64);
    reducer = plain.get();
    sorted = {{.first = 0, .count = first_group.size(), .state = reinterpret_cast<const std::byte*>(first_group.data())}};
  }

  const DType dtype = layout.float_dtype();
  const auto apply = [&](const StatePiece& piece, size_t offset) -> absl::Status {
    std::array<double, kBlockElements> sums, model, base;  // on the stack of the thread that does the block
    const size_t first = piece.first + offset;
    const size_t count = std::min(kBlockElements, piece.count - offset);
    reducer->ReportBlock(piece.state + offset * reducer->state_bytes_per_element(), count, 1.0, sums.data());
    // The front of the block may be trainable, the rest are buffers.
    const size_t trainable = first < layout.trainable_count() ? std::min(count, layout.trainable_count() - first) : 0;
    if (trainable > 0) {
      LoadBlock(dtype, input.previous.data(), first, {model.data(), trainable});
      if (step.needs_base()) LoadBlock(dtype, input.base.data(), first, {base.data(), trainable});
      const StepBlock block{.first = first,
                            .model = {model.data(), trainable},
                            .sums = {sums.data(), trainable},
                            .divisor = divisor,
                            .facts = &input.facts,
                            .second = second_group.empty() ? std::span<const double>() : std::span<const double>(second_group).subspan(first, trainable),
                            .base = {base.data(), step.needs_base() ? trainable : 0},
                            .dtype = dtype};
      input.scales.empty() ? step.ApplyBlock(block, state) : ApplyScaled(step, block, input.scales, {sums.data(), trainable}, state);
    }
    if (input.keep_buffers) {
      LoadBlock(dtype, input.previous.data(), first + trainable, std::span(model).subspan(trainable, count - trainable));
    } else {
      for (size_t i = trainable; i < count; ++i) model[i] = sums[i] / sum_weight;
    }
    const std::span<const double> values(model.data(), count);
    const bool finite = dtype == DType::kF64 ? StoreBlock<double>(next.data(), first, values) : StoreBlock<float>(next.data(), first, values);
    if (finite) return absl::OkStatus();
    const auto bad = std::find_if(values.begin(), values.end(), [dtype](double value) { return !IsFiniteAs(dtype, value); });
    return DataLoss("{}: the new value {} is not a finite {}", Whereabouts(layout, first + static_cast<size_t>(bad - values.begin())), *bad, DTypeName(dtype));
  };
  for (const StatePiece& piece : sorted) {
    const size_t blocks = (piece.count + kBlockElements - 1) / kBlockElements;
    if (!input.for_each) {
      for (size_t b = 0; b < blocks; ++b) TRIB_RETURN_IF_ERROR(apply(piece, b * kBlockElements));
      continue;
    }
    std::vector<absl::Status> results(blocks);
    input.for_each(blocks, [&](size_t b) { results[b] = apply(piece, b * kBlockElements); });
    for (const absl::Status& result : results) TRIB_RETURN_IF_ERROR(result);
  }
  // What no update has: the server's own tensors, and buffers where they do not travel.
  const size_t moved_bytes = (input.without_buffers ? layout.trainable_count() : layout.summed_count()) * DTypeBytes(dtype);
  std::copy_n(input.previous.begin() + static_cast<ptrdiff_t>(moved_bytes), layout.float_bytes() - moved_bytes,
              next.begin() + static_cast<ptrdiff_t>(moved_bytes));
  const size_t counter_bytes = layout.counter_count() * sizeof(int64_t);
  if (counter_bytes > 0) {
    const void* from = input.counters.empty() ? static_cast<const void*>(input.previous.data() + layout.float_bytes()) : input.counters.data();
    std::memcpy(next.data() + layout.float_bytes(), from, counter_bytes);
  }
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
