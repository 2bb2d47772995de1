// Products of a tall and a wide matrix, kept as their factors: norm and best approximation of low rank without the product itself. With thin
// QR of both factors, B = Q_B·R_B and Aᵀ = Q_A·R_A, the product is Q_B·(R_B·R_Aᵀ)·Q_Aᵀ: what is decomposed has the factors' small side.
// The only file with Eigen. Everything in fp64; equal inputs give equal bits on one machine.
// Threads: pure.
#pragma once

#include <cstddef>
#include <vector>

namespace tributary::aggregator {

// Row-major.
struct Matrix {
  size_t rows = 0, cols = 0;
  std::vector<double> values;
  static Matrix Zero(size_t rows, size_t cols) { return {rows, cols, std::vector<double>(rows * cols)}; }
  double& operator()(size_t row, size_t col) { return values[row * cols + col]; }
  double operator()(size_t row, size_t col) const { return values[row * cols + col]; }
};

// b·a, b [out, n], a [n, in].
struct LowRank {
  Matrix b, a;
};

// ‖b·a‖_F.
double ProductNorm(const LowRank& product);
// The best approximation of rank <= `rank` in the Frobenius norm, b = U·√S and a = √S·Vᵀ by falling singular values; components that the
// product does not have are 0. The largest element of each column of U is positive.
LowRank Truncated(const LowRank& product, size_t rank);
// out[i, j] += scale·Σ_l b[i, l]·a[l, j], l ascending; `out`: row-major, as many elements as the product has.
void AddProduct(const LowRank& product, double scale, std::vector<double>& out);

}  // namespace tributary::aggregator
