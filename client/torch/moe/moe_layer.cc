#include "client/torch/moe/moe_layer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <utility>

#include "client/torch/decoder.h"
#include "common/check.h"

namespace tributary::client {
namespace {

at::Tensor ToTensor(const std::vector<int64_t>& values, at::Device device) {
  // from_blob wants a mutable pointer; the copy below only reads.
  return at::from_blob(const_cast<int64_t*>(values.data()), {static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kLong))
      .to(device, at::kLong, /*non_blocking=*/false, /*copy=*/true);
}

std::vector<float> ToFloats(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  const auto* values = host.const_data_ptr<float>();
  return {values, values + host.numel()};
}

}  // namespace

MoeLayer::MoeLayer(MoeOptions options, at::Tensor gate, std::vector<Expert> experts, at::Tensor bias)
    : options_(options), gate_(std::move(gate)), experts_(std::move(experts)), bias_(std::move(bias)) {}

void MoeLayer::Begin(std::unique_ptr<Router> router) {
  router_ = std::move(router);
  step_counts_.assign(experts_.size(), 0);
  loads_ = {};
  auxiliary_loss_ = at::Tensor();
  if (!bias_.defined()) return;
  // Values from outside: a version whose bias is not finite balances nothing, it does not stop training.
  const absl::Status taken = router_->SetState(ToFloats(bias_));
  if (!taken.ok()) TRIB_CHECK(router_->SetState(std::vector<float>(experts_.size(), 0.0F)).ok());
}

at::Tensor MoeLayer::Forward(const at::Tensor& x, size_t sequence, bool training) {
  TRIB_CHECK(router_ != nullptr, "a layer without a router");
  const auto experts = static_cast<size_t>(gate_.size(0));
  const at::Tensor logits = at::linear(x, gate_);
  const at::Tensor scores = options_.score == Score::kSoftmax ? at::softmax(logits, -1) : at::sigmoid(logits);
  const std::vector<float> plain_logits = ToFloats(logits), plain_scores = Scores(plain_logits, experts, options_.score);
  const Selection selection = router_->Select(plain_logits, plain_scores, {.training = training, .sequence = sequence});
  const std::vector<int64_t> counts = selection.Counts();
  if (training) {
    loads_.Add(counts);
    for (size_t j = 0; j < experts; ++j) step_counts_[j] += counts[j];
    auxiliary_loss_ = at::Tensor();
    if (const std::vector<double> weights = router_->LossWeights(counts); !weights.empty()) {
      const at::Tensor weight = at::from_blob(const_cast<double*>(weights.data()), {static_cast<int64_t>(experts)}, at::TensorOptions().dtype(at::kDouble))
                                    .to(scores.device(), scores.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
      auxiliary_loss_ = (scores.mean(0) * weight).sum();
    }
    if (options_.z_loss > 0) {
      const at::Tensor z = at::logsumexp(logits, {1}).square().mean() * options_.z_loss;
      auxiliary_loss_ = auxiliary_loss_.defined() ? auxiliary_loss_ + z : z;
    }
  }
  const at::Tensor gates = GatesOf(selection, logits, scores);
  const at::Tensor token = ToTensor(selection.token, x.device());
  at::Tensor y = at::zeros_like(x);
  for (size_t j = 0; j < experts; ++j) {
    const int64_t first = selection.offsets[j], last = selection.offsets[j + 1];
    if (first == last) continue;
    const at::Tensor rows = token.slice(0, first, last);
    const at::Tensor served = SwiGlu(x.index_select(0, rows), experts_[j].w1, experts_[j].w3, experts_[j].w2);
    y = y.index_add(0, rows, served * gates.slice(0, first, last).unsqueeze(1));
  }
  return y;
}

at::Tensor MoeLayer::GatesOf(const Selection& selection, const at::Tensor& logits, const at::Tensor& scores) const {
  const size_t experts = selection.experts();
  std::vector<int64_t> flat(selection.pairs());
  for (size_t j = 0; j < experts; ++j) {
    for (int64_t pair = selection.offsets[j]; pair < selection.offsets[j + 1]; ++pair) {
      flat[static_cast<size_t>(pair)] = selection.token[static_cast<size_t>(pair)] * static_cast<int64_t>(experts) + static_cast<int64_t>(j);
    }
  }
  const at::Tensor places = ToTensor(flat, scores.device());
  at::Tensor value;
  const GateRule rule = router_->gate_rule();
  if (rule == GateRule::kSoftmaxOfChosen) {
    // Any number may be taken off a token's logits: the largest of all its logits keeps the powers in range.
    const at::Tensor shifted = logits - std::get<0>(logits.detach().max(1, /*keepdim=*/true));
    value = at::exp(shifted.flatten().index_select(0, places));
  } else {
    value = scores.flatten().index_select(0, places);
  }
  if (rule != GateRule::kScore) {
    const at::Tensor token = ToTensor(selection.token, scores.device());
    const at::Tensor sum = at::zeros({static_cast<int64_t>(selection.tokens)}, scores.options()).index_add(0, token, value);
    value = value / sum.index_select(0, token).clamp_min(1e-30);
  }
  return options_.gate == GateShape::kSqrt ? at::sqrt(value + 1e-30) : value;
}

void MoeLayer::EndStep() {
  router_->EndStep(step_counts_);
  std::fill(step_counts_.begin(), step_counts_.end(), 0);
  if (!bias_.defined()) return;
  std::vector<float> state = router_->state();
  const at::NoGradGuard no_grad;
  bias_.copy_(at::from_blob(state.data(), {static_cast<int64_t>(state.size())}, at::TensorOptions().dtype(at::kFloat)));
}

}  // namespace tributary::client
