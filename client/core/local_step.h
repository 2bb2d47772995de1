// One local SGD step for every strategy (algorithms: the table of local solvers):
//
//   y ← y − η·( a·g(y;ξ) + b·g(x⁻;ξ) + μ·(y − s) + v ),   y⁰ given, v fixed for the task, one ξ for both gradients
//
// g is the client's gradient on the minibatch ξ. All vectors are over the trainable elements in layout order. The analytic learner and
// LibTorch's solver (client/torch/local) both run it. `solver: exact` returns argmin f(w) + ⟨v,w⟩ + (μ/2)‖w − s‖² instead; a = 1, b = 0.
// Borrows its vectors for the task.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

struct LocalStep {
  double a = 1;
  double b = 0;                      // not 0: `before` is needed
  double mu = 0;                     // not 0: `s` is needed
  std::span<const double> s;
  std::span<const double> v;         // empty: 0
  std::span<const double> y0;        // empty: x, the received model
  std::span<const double> before;    // x⁻, the version before x
};

// The proximal factor μ of the strategy's local step, whose s is the received model: fedprox's `mu` (Li et al. 2020; 0.1 unless given),
// 0 for strategies without one. INVALID_ARGUMENT: not a finite number >= 0.
absl::StatusOr<double> ProximalFactor(const StrategySpec& strategy);

// ‖a‖₁ of `steps` local steps, the sum of the factors that their gradients have in the update over −η: t for plain SGD, less the part
// still in the velocity for heavy-ball momentum, less what the proximal pull takes back (Wang et al., NeurIPS 2020, §3). Not both.
double StepNorm(uint64_t steps, double lr, double momentum, double mu);

// The numbers that the strategy wants with an update: fednova "step_norm", qfedavg "initial_loss".
std::map<std::string, double> StrategyScalars(const StrategySpec& strategy, double step_norm, double initial_loss);

}  // namespace tributary::client
