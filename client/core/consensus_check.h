// What RERCE-Fed cannot do, told before it is tried (algorithms.md §11.1): its recursion has a unit eigenvalue for every consensus point, so
// that (a) noise on links makes the consensus a random walk, and (b) a mean over fewer than all clients leaves the optimum. Both vanish as
// ρN_i = ρ(∇²f_i + ρI)⁻¹ does on the range of ∇²f_i.
// Source: Lari, Arablouei, Gogineni, Werner, arXiv 2409.13451. Pure; threads: safe.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/core/analytic/problem.h"
#include "common/job_spec.h"

namespace tributary::client {

// Smallest eigenvalue above rounding of a symmetric positive semidefinite matrix, row-major d × d; 0: there is none. By cyclic Jacobi rotations
// (Golub and Van Loan, Matrix Computations, §8.5): for the few hundred unknowns of analytic problems.
double SmallestPositiveEigenvalue(std::vector<double> matrix, size_t d);

// Of a job with strategy rerce_admm whose problems have a constant Hessian; none where nothing is known or nothing is wrong.
std::vector<std::string> ConsensusWarnings(const JobSpec& spec, std::span<const std::shared_ptr<const AnalyticProblem>> problems);

}  // namespace tributary::client
