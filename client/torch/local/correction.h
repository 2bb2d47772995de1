// The local step of the strategies (client/core/local_step.h) over LibTorch tensors:
//   w ← w − lr·( a·g(w;ξ) + b·g(x⁻;ξ) + μ·(w − s) + v )
// Undefined tensors stand for absent terms. All are vectors over the trainable elements, of the model's type, on its device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <span>
#include <vector>

#include "client/core/local_rule.h"
#include "client/torch/trainable_model.h"

namespace tributary::client {

struct Correction {
  double a = 1;
  double b = 0;
  double mu = 0;
  at::Tensor s, v, before;
  bool gradient_only = false;        // no step: only the gradient is wanted
  bool wants_mean_gradient = false;
  double gradient_noise = 0;         // s: every gradient gets + N(0, s²I), the same draw for both of a step
  // Whether the step is SGD's own.
  bool plain() const { return a == 1 && b == 0 && mu == 0 && !v.defined() && !gradient_only && !wants_mean_gradient && gradient_noise == 0; }
};

inline at::Tensor ToTensor(std::span<const double> values, const TrainableModel& model) {
  // from_blob wants a mutable pointer; to() copies.
  return at::from_blob(const_cast<double*>(values.data()), {static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kDouble))
      .to(model.device(), model.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
}

inline std::vector<double> ToDoubles(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  const auto* values = host.const_data_ptr<double>();
  return {values, values + host.numel()};
}

inline Correction ToCorrection(const LocalPlan& plan, const TrainableModel& model) {
  Correction correction;
  correction.a = plan.step.a;
  correction.b = plan.step.b;
  correction.mu = plan.step.mu;
  correction.gradient_only = plan.gradient_only;
  correction.wants_mean_gradient = plan.wants_mean_gradient;
  if (plan.step.mu != 0) correction.s = ToTensor(plan.step.s, model);
  if (plan.step.b != 0) correction.before = ToTensor(plan.step.before, model);
  if (!plan.step.v.empty()) correction.v = ToTensor(plan.step.v, model);
  return correction;
}

}  // namespace tributary::client
