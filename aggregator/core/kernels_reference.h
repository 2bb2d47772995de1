// Plain loops that say what kernels.h computes; tests compare the two on random and on hostile inputs. Contracts: kernels.h.
#pragma once

#include "aggregator/core/kernels.h"

namespace tributary::reference {
using aggregator::ScanResult;
bool FoldF32(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);
bool FoldF64(double* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);
bool FoldFixedF32(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);
bool FoldFixedF64(int64_t* acc, const std::byte* const* xs, const double* weights, size_t k, size_t n, bool first);
ScanResult Scan(std::span<const std::byte> floats, DType dtype);
}  // namespace tributary::reference
