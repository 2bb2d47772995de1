#include "aggregator/core/server_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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

absl::Status PrepareState(const ServerStep& step, size_t trainable, StrategyState* state) {
  for (const std::string& name : step.state_vectors()) {
    const auto [it, fresh] = state->vectors.try_emplace(name);
    if (fresh) it->second.assign(trainable, 0.0);
    if (it->second.size() != trainable) {
      return InvalidArgument("strategy vector '{}': expected {} elements, got {}", name, trainable, it->second.size());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyServerStep(const ServerStep& step, const TensorLayout& layout, const Reducer& reducer,
                             std::span<const StatePiece> pieces, double sum_weight, std::span<const int64_t> counters,
                             std::span<const std::byte> previous, StrategyState& state, std::span<std::byte> next) {
  if (!(sum_weight > 0) || !std::isfinite(sum_weight)) return InvalidArgument("sum of weights must be finite and > 0, got {}", sum_weight);
  if (previous.size() != layout.total_bytes() || next.size() != layout.total_bytes()) {
    return InvalidArgument("a model of this layout has {} bytes; got {} before and {} after the step", layout.total_bytes(),
                           previous.size(), next.size());
  }
  if (!counters.empty() && counters.size() != layout.counter_count()) {
    return InvalidArgument("expected {} counters, got {}", layout.counter_count(), counters.size());
  }
  std::vector<StatePiece> sorted(pieces.begin(), pieces.end());
  std::erase_if(sorted, [](const StatePiece& piece) { return piece.count == 0; });
  std::sort(sorted.begin(), sorted.end(), [](const StatePiece& a, const StatePiece& b) { return a.first < b.first; });
  TRIB_RETURN_IF_ERROR(CheckPieces(sorted, layout.float_count()));
  TRIB_RETURN_IF_ERROR(PrepareState(step, layout.trainable_count(), &state));

  const DType dtype = layout.float_dtype();
  std::vector<double> mean(kBlockElements);
  std::vector<double> model(kBlockElements);
  for (const StatePiece& piece : sorted) {
    for (size_t offset = 0; offset < piece.count; offset += kBlockElements) {
      const size_t first = piece.first + offset;
      const size_t count = std::min(kBlockElements, piece.count - offset);
      reducer.ReportBlock(piece.state + offset * reducer.state_bytes_per_element(), count, sum_weight, mean.data());
      // The front of the block may be trainable, the rest are buffers.
      const size_t trainable = first < layout.trainable_count() ? std::min(count, layout.trainable_count() - first) : 0;
      if (trainable > 0) {
        const std::span<double> old(model.data(), trainable);
        dtype == DType::kF64 ? LoadBlock<double>(previous.data(), first, old) : LoadBlock<float>(previous.data(), first, old);
        step.ApplyBlock({.first = first, .model = {model.data(), trainable}, .mean = {mean.data(), trainable}}, state);
      }
      std::copy(mean.begin() + static_cast<ptrdiff_t>(trainable), mean.begin() + static_cast<ptrdiff_t>(count),
                model.begin() + static_cast<ptrdiff_t>(trainable));
      const std::span<const double> values(model.data(), count);
      const bool finite = dtype == DType::kF64 ? StoreBlock<double>(next.data(), first, values) : StoreBlock<float>(next.data(), first, values);
      if (!finite) {
        const auto bad = std::find_if(values.begin(), values.end(), [dtype](double value) { return !IsFiniteAs(dtype, value); });
        return DataLoss("{}: the new value {} is not a finite {}", Whereabouts(layout, first + static_cast<size_t>(bad - values.begin())), *bad,
                        DTypeName(dtype));
      }
    }
  }
  const size_t counter_bytes = layout.counter_count() * sizeof(int64_t);
  if (counter_bytes > 0) {
    const void* from = counters.empty() ? static_cast<const void*>(previous.data() + layout.float_bytes()) : counters.data();
    std::memcpy(next.data() + layout.float_bytes(), from, counter_bytes);
  }
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
