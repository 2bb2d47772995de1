// The triplets of one layer under AdaLoRA (Zhang et al., ICLR 2023): B·diag(E∘mask)·A in place of B·A, what keeps B and A near orthogonal, and how much each
// triplet matters:
//   I = |p·g| of every weight p after a step of the optimiser with the step's gradient g (with what weight decay adds);
//   Ī ← β1·Ī + (1 − β1)·I,  Ū ← β2·Ū + (1 − β2)·|I − Ī|,  s = Ī·Ū;  S of triplet l: s(E_l) + mean_j s(A_lj) + mean_i s(B_il).
// Ī and Ū begin at 0 with each task: no client keeps anything, and at β = 0.85 they forget in about seven steps.
// Once the mask takes triplets out, the pattern is fixed and nothing is measured; with `regrow: false` it takes some out from the first allotment on: those
// have no gradient, the penalty is over the others, and theirs is the importance that is measured.
// Threads: as Model. May throw LibTorch's exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/adapter_spec.h"

namespace tributary::client {

class Triplets {
 public:
  struct Tensors {
    at::Tensor a, e, b;              // [r, in], [r, 1], [out, r]; with gradients once a TrainableModel has them
    at::Tensor importance, mask;     // [r]
  };
  Triplets(Tensors tensors, const AdaLoraSpec& spec);

  // x·(B·diag(E∘mask)·A)ᵀ.
  at::Tensor Product(const at::Tensor& x) const;
  // ‖A·Aᵀ − 1‖_F + ‖Bᵀ·B − 1‖_F; without regrowth of the rows and columns that are in.
  at::Tensor Departure() const;
  // Before a task's first step; after each of its steps: writes S into `importance`.
  void Begin();
  void Measure();

 private:
  struct Smoothed {
    at::Tensor mean, spread;  // Ī, Ū
  };
  at::Tensor Score(const at::Tensor& weight, Smoothed& smoothed) const;

  Tensors tensors_;
  double beta1_, beta2_;
  bool regrow_;
  Smoothed a_, e_, b_;
  bool fixed_ = false;
};

}  // namespace tributary::client
