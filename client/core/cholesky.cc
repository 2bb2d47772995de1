#include "client/core/cholesky.h"

#include <cmath>
#include <limits>

namespace tributary::client {

bool CholeskyFactor(std::span<double> matrix, size_t d) {
  double largest = 0;
  for (size_t i = 0; i < d; ++i) largest = std::fmax(largest, matrix[i * d + i]);
  // Below this a pivot is rounding: the matrix is singular for all that can be told.
  const double least = largest * std::numeric_limits<double>::epsilon() * static_cast<double>(d);
  for (size_t j = 0; j < d; ++j) {
    double* row_j = &matrix[j * d];
    double pivot = row_j[j];
    for (size_t k = 0; k < j; ++k) pivot -= row_j[k] * row_j[k];
    if (!(pivot > least) || !std::isfinite(pivot)) return false;
    row_j[j] = std::sqrt(pivot);
    for (size_t i = j + 1; i < d; ++i) {
      double* row_i = &matrix[i * d];
      double sum = row_i[j];
      for (size_t k = 0; k < j; ++k) sum -= row_i[k] * row_j[k];
      row_i[j] = sum / row_j[j];
    }
  }
  return true;
}

void CholeskySolve(std::span<const double> lower, size_t d, std::span<double> r) {
  for (size_t i = 0; i < d; ++i) {
    double sum = r[i];
    for (size_t k = 0; k < i; ++k) sum -= lower[i * d + k] * r[k];
    r[i] = sum / lower[i * d + i];
  }
  for (size_t i = d; i-- > 0;) {
    double sum = r[i];
    for (size_t k = i + 1; k < d; ++k) sum -= lower[k * d + i] * r[k];
    r[i] = sum / lower[i * d + i];
  }
}

}  // namespace tributary::client
