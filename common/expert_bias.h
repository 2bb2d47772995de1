// The rule by which biases of experts balance their loads without a loss: tokens go to the K largest of score + bias, and after step n with
// counts A and even load L = ΣA/E
//   sign          b_i += ε_n·sign(L − A_i)          (Wang et al. 2024, arXiv 2408.15664, Algorithm 1)
//   proportional  b_i += ε_n·(L − A_i)/L            (a step up the dual of max Σ s·x with even loads, arXiv 2512.03915)
// ε_n = step·{1, 1/√n, 1/n}, times the standard deviation of the step's scores where `scale_by_std` (a step must fit their spread). |b| <=
// clamp: without it the bias of a layer that cannot be balanced runs away.
// The server makes one step a version from all clients' counts; a client may make its own in between. Threads: pure.
#pragma once

#include <cstdint>
#include <span>

#include "common/named_params.h"
#include "common/status.h"

namespace tributary {

// As in a job: model.params.router {name: alf, …}.
#define TRIB_ALF_DEFAULTS "rule=sign,schedule=constant,step=0.001,scale_by_std=true,clamp=2.0,local_steps=false"

struct ExpertBiasRule {
  enum class Direction { kSign, kProportional };
  enum class Schedule { kConstant, kSqrt, kInverse };
  Direction direction = Direction::kSign;
  Schedule schedule = Schedule::kConstant;
  double step = 0.001;
  bool scale_by_std = true;
  double clamp = 2.0;

  // INVALID_ARGUMENT naming the parameter.
  static absl::StatusOr<ExpertBiasRule> Of(const NamedParams& params);
  // Step n >= 1, `deviation`: of the step's scores. Nothing was routed: the bias stays as it is.
  void Move(uint64_t n, std::span<const int64_t> counts, double deviation, std::span<double> bias) const;
};

}  // namespace tributary
