#include "aggregator/core/whole_reducer.h"

#include <algorithm>
#include <cstring>

namespace tributary::aggregator {
namespace {

template <typename T>
T ValueAt(std::span<const std::byte> flat, size_t i) {
  T value;
  std::memcpy(&value, flat.data() + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

double FloatAt(const TensorLayout& layout, std::span<const std::byte> flat, size_t i) {
  return layout.float_dtype() == DType::kF64 ? ValueAt<double>(flat, i) : static_cast<double>(ValueAt<float>(flat, i));
}

void MeanOf(const WholeInput& input, std::span<const double> factors, size_t first, std::span<double> out) {
  double sum = 0;
  for (const double factor : factors) sum += factor;
  std::fill(out.begin() + static_cast<ptrdiff_t>(first), out.end(), 0.0);
  for (size_t k = 0; k < input.updates.size(); ++k) {
    if (factors[k] == 0) continue;
    for (size_t i = first; i < out.size(); ++i) out[i] += factors[k] * FloatAt(*input.layout, input.updates[k].flat, i);
  }
  for (size_t i = first; i < out.size(); ++i) out[i] /= sum;
}

std::vector<double> FloatsOf(const TensorLayout& layout, std::span<const std::byte> flat) {
  std::vector<double> values(layout.summed_count());
  for (size_t i = 0; i < values.size(); ++i) values[i] = FloatAt(layout, flat, i);
  return values;
}

}  // namespace tributary::aggregator
