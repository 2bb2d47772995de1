#include <vector>

#include "client/torch/learner.h"
#include "client/torch/local/solver.h"
#include "common/suggest.h"

namespace tributary::client {

#define TRIB_LOCAL_SOLVER(name, function, help) absl::StatusOr<LocalOutcome> function(const LocalRun&);
#include "client/torch/local/solvers.def"
#undef TRIB_LOCAL_SOLVER

namespace {

constexpr LocalSolverEntry kEntries[] = {
#define TRIB_LOCAL_SOLVER(name, function, help) {#name, help},
#include "client/torch/local/solvers.def"
#undef TRIB_LOCAL_SOLVER
};

constexpr LocalSolver kFunctions[] = {
#define TRIB_LOCAL_SOLVER(name, function, help) function,
#include "client/torch/local/solvers.def"
#undef TRIB_LOCAL_SOLVER
};

}  // namespace

std::span<const LocalSolverEntry> LocalSolvers() { return kEntries; }

absl::StatusOr<LocalSolver> FindLocalSolver(const std::string& name) {
  std::vector<std::string> names;
  for (size_t i = 0; i < std::size(kEntries); ++i) {
    names.emplace_back(kEntries[i].name);
    if (names.back() == name) return kFunctions[i];
  }
  return NotFound("no local solver '{}'{}; there are: {}", name, DidYouMean(name, names), fmt::format("{}", fmt::join(names, ", ")));
}

}  // namespace tributary::client
