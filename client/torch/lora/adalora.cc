#include "client/torch/lora/adalora.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <utility>

namespace tributary::client {
namespace {

// ‖M·Mᵀ − 1‖_F.
at::Tensor FromOrthonormalRows(const at::Tensor& matrix) {
  const at::Tensor gram = matrix.matmul(matrix.t());
  return at::linalg_vector_norm(gram - at::eye(gram.size(0), gram.options()));
}

// Of the rows that `mask` [r] has in, 1 there and 0 elsewhere.
at::Tensor FromOrthonormalRows(const at::Tensor& matrix, const at::Tensor& mask) {
  const at::Tensor in = matrix * mask.unsqueeze(1), gram = in.matmul(in.t());
  return at::linalg_vector_norm(gram - at::eye(gram.size(0), gram.options()) * mask);
}

}  // namespace

Triplets::Triplets(Tensors tensors, const AdaLoraSpec& spec) : tensors_(std::move(tensors)), beta1_(spec.beta1), beta2_(spec.beta2), regrow_(spec.regrow) {
  for (const auto& [weight, smoothed] : {std::pair{tensors_.a, &a_}, std::pair{tensors_.e, &e_}, std::pair{tensors_.b, &b_}}) {
    *smoothed = {at::zeros_like(weight), at::zeros_like(weight)};
  }
}

at::Tensor Triplets::Product(const at::Tensor& x) const {
  const at::Tensor live = tensors_.e * tensors_.mask.unsqueeze(1);
  return at::linear(at::linear(x, tensors_.a * live), tensors_.b);
}

at::Tensor Triplets::Departure() const {
  if (!regrow_) return FromOrthonormalRows(tensors_.a, tensors_.mask) + FromOrthonormalRows(tensors_.b.t(), tensors_.mask);
  return FromOrthonormalRows(tensors_.a) + FromOrthonormalRows(tensors_.b.t());
}

void Triplets::Begin() {
  fixed_ = regrow_ && tensors_.mask.min().item<double>() == 0;
  for (Smoothed* smoothed : {&a_, &e_, &b_}) {
    smoothed->mean.zero_();
    smoothed->spread.zero_();
  }
}

at::Tensor Triplets::Score(const at::Tensor& weight, Smoothed& smoothed) const {
  const at::Tensor importance = (weight * weight.grad()).abs();
  smoothed.mean.mul_(beta1_).add_(importance, 1 - beta1_);
  smoothed.spread.mul_(beta2_).add_((importance - smoothed.mean).abs(), 1 - beta2_);
  return smoothed.mean * smoothed.spread;
}

void Triplets::Measure() {
  if (fixed_) return;
  const at::NoGradGuard no_grad;
  const at::Tensor measured = Score(tensors_.e, e_).squeeze(1) + Score(tensors_.a, a_).mean(1) + Score(tensors_.b, b_).mean(0);
  tensors_.importance.copy_(regrow_ ? measured : at::where(tensors_.mask != 0, measured, tensors_.importance));
}

}  // namespace tributary::client
