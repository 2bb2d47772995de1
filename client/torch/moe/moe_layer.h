// A mixture-of-experts feed-forward layer: scores = softmax or sigmoid of x·W_rᵀ; a Router (client/core/moe/router.h) says who serves
// which token; y_n = Σ_j g_nj·F_j(x_n) with gates g that have a gradient, F_j a SwiGLU network of its own.
//
// Dispatch is a loop over the experts that have tokens: gather, three products, weighted scatter-add. The router's arithmetic runs on the
// processor (moe_math.h); its gates, recomputed here with a gradient, are tested against moe_math's.
// Borrows nothing; the tensors are the model's, shared by handle. Threads: thread-compatible. May throw LibTorch's exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "client/core/moe/moe_metrics.h"
#include "client/core/moe/router.h"

namespace tributary::client {

struct MoeOptions {
  Score score = Score::kSoftmax;
  GateShape gate = GateShape::kLinear;
  double z_loss = 0;
};

// One expert: w2(silu(w1·x) · w3·x), names as in Mixtral.
struct Expert {
  at::Tensor w1, w2, w3;
};

class MoeLayer {
 public:
  // `bias`: the router's state as a tensor of the model [E], undefined if it has none.
  MoeLayer(MoeOptions options, at::Tensor gate, std::vector<Expert> experts, at::Tensor bias);

  // Before a task: this task's router, which begins with the state in the model.
  void Begin(std::unique_ptr<Router> router);
  // x: [N, D], tokens of sequences of `sequence` one after the other.
  at::Tensor Forward(const at::Tensor& x, size_t sequence, bool training);
  // Balance and z-loss of the last Forward in training; undefined if neither is wanted.
  const at::Tensor& auxiliary_loss() const { return auxiliary_loss_; }
  // After an optimiser's step: the router learns from its batches, the model's tensor follows.
  void EndStep();
  const LoadRecord& loads() const { return loads_; }

 private:
  at::Tensor GatesOf(const Selection& selection, const at::Tensor& logits, const at::Tensor& scores) const;

  const MoeOptions options_;
  at::Tensor gate_;
  std::vector<Expert> experts_;
  at::Tensor bias_;
  std::unique_ptr<Router> router_;
  at::Tensor auxiliary_loss_;
  std::vector<int64_t> step_counts_;
  LoadRecord loads_;
};

}  // namespace tributary::client
