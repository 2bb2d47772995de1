// Raw floating elements of a flat form as doubles, and back, rounded to the type. Pure. Threads: safe.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "common/tensor_layout.h"

namespace tributary::client {

// `bytes`: whole elements of `dtype`, F32 or F64; alignment does not matter.
std::vector<double> WidenFloats(DType dtype, std::span<const std::byte> bytes);
// `bytes`: values.size() elements.
void NarrowFloats(DType dtype, std::span<const double> values, std::span<std::byte> bytes);

}  // namespace tributary::client
