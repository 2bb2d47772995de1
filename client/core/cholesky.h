// Solves M·w = r for a symmetric positive definite M by its Cholesky factor M = L·Lᵀ (Golub and Van Loan, Matrix Computations, §4.2).
// For the few hundred unknowns of analytic problems: no blocking. Row-major. Threads: pure.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace tributary::client {

// The lower triangle of `matrix` (d × d) becomes L. False: not positive definite in double precision; the content is undefined.
bool CholeskyFactor(std::span<double> matrix, size_t d);
// r becomes the solution.
void CholeskySolve(std::span<const double> lower, size_t d, std::span<double> r);

}  // namespace tributary::client
