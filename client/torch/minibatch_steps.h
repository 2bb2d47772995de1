// The loop of the local solvers that make a step for each minibatch: the gradient of its mean loss, corrected as the strategy says (correction.h), goes to the optimizer.
// Source: ClientUpdate of McMahan et al., AISTATS 2017, Algorithm 1. Contract: solver.h.
#pragma once

#include "client/torch/local/optimizer.h"
#include "client/torch/local/solver.h"

namespace tributary::client {

absl::StatusOr<LocalOutcome> RunMinibatches(const LocalRun& run, LocalOptimizer& optimizer);

}  // namespace tributary::client
