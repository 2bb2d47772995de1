// A mixture-of-experts feed-forward layer: scores = softmax or sigmoid of x·W_rᵀ, in single precision at least; a Router
// (client/core/moe/router.h) says who serves which token; y_n = Σ_j g_nj·F_j(x_n) with gates g that have a gradient, F_j a SwiGLU network of
// its own.
//
// Rows go to their experts and back either way: on the processor, and for routers that look at more than a token, by the router's own
// arithmetic (moe_math.h) and LibTorch's gather and scatter-add; on a GPU by kernels that wait for nothing (device_moe.h). Products are a
// loop over the experts that have tokens, or one grouped product of all (at::_grouped_mm, which is LibTorch's own business and therefore probed);
// `auto` groups where that is in bfloat16 on a GPU. Gates, recomputed here with a gradient, are tested against moe_math's.
// Borrows nothing; the tensors are the model's, shared by handle. Threads: thread-compatible. May throw LibTorch's exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "client/core/moe/moe_metrics.h"
#include "client/core/moe/router.h"
#include "client/torch/moe/device_moe.h"

namespace tributary::client {

enum class GemmKind { kAuto, kLoop, kGrouped };

struct MoeOptions {
  Score score = Score::kSoftmax;
  GateShape gate = GateShape::kLinear;
  double z_loss = 0;
  GemmKind gemm = GemmKind::kAuto;
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
  // After an optimiser's step: what the step counted comes from the device, the router learns from it, and the model's tensor follows (if the
  // server does not own it).
  void EndStep();
  const LoadRecord& loads() const { return loads_; }
  // Sums over the batches in training since Begin.
  MoeLayerStats Statistics();
  Router& router() { return *router_; }

 private:
  // Who serves whom, in the order of pairs.
  struct Routed {
    at::Tensor token;                     // [M] i64
    at::Tensor offsets;                   // [E + 1] i64, on x's device
    std::vector<int64_t> host_offsets;    // the same; empty: only there
    at::Tensor gates;                     // [M], or [N, K] by choice with `device`
    std::optional<DeviceRouting> device;  // rows are moved by kernels
  };
  Routed Route(const at::Tensor& logits, const at::Tensor& scores, size_t sequence, bool training);
  Routed RouteByKernels(const at::Tensor& logits, const at::Tensor& scores, bool training);
  void Collect();  // what the device has counted
  void AddLosses(const at::Tensor& logits, const at::Tensor& scores, const std::vector<int64_t>& counts);
  at::Tensor GatesOf(const Selection& selection, const at::Tensor& logits, const at::Tensor& scores) const;
  at::Tensor ByLoop(const at::Tensor& rows, const Routed& routed) const;
  at::Tensor ByGroups(const at::Tensor& rows, const Routed& routed);
  bool Groups(const at::Tensor& rows) const;
  // [E, out, in]: a view where the experts' tensors lie at equal distances, as in a model's flat buffer, whose gradient goes where theirs does.
  at::Tensor Stacked(at::Tensor Expert::*member, at::Tensor* kept);

  const MoeOptions options_;
  at::Tensor gate_;
  std::vector<Expert> experts_;
  at::Tensor bias_;
  std::unique_ptr<Router> router_;
  bool wants_counts_ = false;        // the router's loss needs a batch's counts at once
  at::Tensor auxiliary_loss_;
  std::array<at::Tensor, 3> stacked_;  // w1, w2, w3
  at::Tensor device_sums_;           // [2E + 2] f64 of the step: counts, scores, squares, tokens
  MoeLayerStats step_;
  LoadRecord loads_;
  MoeLayerStats stats_;
};

}  // namespace tributary::client
