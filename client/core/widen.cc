#include "client/core/widen.h"

#include <cstring>

namespace tributary::client {

std::vector<double> WidenFloats(DType dtype, std::span<const std::byte> bytes) {
  std::vector<double> values(bytes.size() / DTypeBytes(dtype));
  if (dtype == DType::kF64) {
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(double));
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    float value;
    std::memcpy(&value, bytes.data() + i * sizeof(float), sizeof(float));
    values[i] = static_cast<double>(value);
  }
  return values;
}

void NarrowFloats(DType dtype, std::span<const double> values, std::span<std::byte> bytes) {
  if (dtype == DType::kF64) {
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), values.size() * sizeof(double));
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    std::memcpy(bytes.data() + i * sizeof(float), &value, sizeof(float));
  }
}

}  // namespace tributary::client
