#include <cmath>
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

absl::Status CheckLocalSpec(const LocalSpec& spec) {
  if (spec.batch < 1) return InvalidArgument("local.batch: expected at least 1, got {}", spec.batch);
  if (spec.steps < 0 || (spec.steps == 0 && spec.epochs < 0)) {
    return InvalidArgument("local: expected epochs or steps >= 0, got epochs {} and steps {}", spec.epochs, spec.steps);
  }
  if (!std::isfinite(spec.lr) || !std::isfinite(spec.momentum) || !std::isfinite(spec.weight_decay)) {
    return InvalidArgument("local: expected finite lr, momentum and weight_decay, got {}, {}, {}", spec.lr, spec.momentum, spec.weight_decay);
  }
  return absl::OkStatus();
}

absl::Status LossNotFinite(double loss, uint64_t step, uint64_t steps, const LocalSpec& spec) {
  return Internal("{}: the loss is {} at step {} of {} (lr {}, batch {}): lower local.lr", spec.solver, loss, step + 1, steps, spec.lr, spec.batch);
}

absl::Status WeightNotFinite(int64_t steps, const LocalSpec& spec) {
  return Internal("{}: a weight is not finite after {} steps (lr {}): lower local.lr", spec.solver, steps, spec.lr);
}

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
