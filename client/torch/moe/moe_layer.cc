#include "client/torch/moe/moe_layer.h"

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <map>
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

// Of one batch with these scores [N, E].
MoeLayerStats StatsOf(const std::vector<int64_t>& counts, const std::vector<float>& scores) {
  MoeLayerStats stats{.counts = counts, .prob_sum = std::vector<double>(counts.size(), 0.0), .tokens = static_cast<int64_t>(scores.size() / counts.size())};
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto s = static_cast<double>(scores[i]);
    if (!std::isfinite(s)) continue;  // a diverged step ends the task by its loss
    stats.prob_sum[i % counts.size()] += s;
    stats.square_sum += s * s;
  }
  return stats;
}

MoeLayerStats NoStats(size_t experts) { return {.counts = std::vector<int64_t>(experts, 0), .prob_sum = std::vector<double>(experts, 0.0)}; }

// In which products of rows of this type are computed.
at::ScalarType ComputeType(const at::Tensor& rows) {
  return at::autocast::is_autocast_enabled(rows.device().type()) ? at::autocast::get_autocast_dtype(rows.device().type()) : rows.scalar_type();
}

// Whether LibTorch has a grouped product of this type here. Private to it as it is: asked once for each.
bool HasGroupedProduct(at::Device device, at::ScalarType type) {
  thread_local std::map<std::pair<c10::DeviceType, at::ScalarType>, bool> known;
  const auto [at, fresh] = known.try_emplace({device.type(), type}, false);
  if (!fresh) return at->second;
  try {
    const at::NoGradGuard no_grad;
    const at::Tensor rows = at::zeros({16, 16}, at::TensorOptions().dtype(type).device(device)), weights = at::zeros({2, 16, 16}, rows.options());
    const at::Tensor ends = at::full({2}, 8, rows.options().dtype(at::kInt)).cumsum(0, at::kInt);
    at->second = at::_grouped_mm(rows, weights.transpose(1, 2), ends).size(0) == 16;
  } catch (const c10::Error&) {
    at->second = false;
  }
  return at->second;
}

}  // namespace

MoeLayer::MoeLayer(MoeOptions options, at::Tensor gate, std::vector<Expert> experts, at::Tensor bias)
    : options_(options), gate_(std::move(gate)), experts_(std::move(experts)), bias_(std::move(bias)) {}

void MoeLayer::Begin(std::unique_ptr<Router> router) {
  router_ = std::move(router);
  wants_counts_ = !router_->LossWeights(std::vector<int64_t>(experts_.size(), 1)).empty();
  step_ = NoStats(experts_.size());
  stats_ = NoStats(experts_.size());
  loads_ = {};
  device_sums_ = at::Tensor();
  auxiliary_loss_ = at::Tensor();
  stacked_ = {};  // the model's tensors may lie elsewhere now
  if (!bias_.defined()) return;
  // Values from outside: a version whose bias is not finite balances nothing, it does not stop training.
  const absl::Status taken = router_->SetState(ToFloats(bias_));
  if (!taken.ok()) TRIB_CHECK(router_->SetState(std::vector<float>(experts_.size(), 0.0F)).ok());
}

at::Tensor MoeLayer::Forward(const at::Tensor& x, size_t sequence, bool training) {
  TRIB_CHECK(router_ != nullptr, "a layer without a router");
  at::Tensor logits;
  {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    logits = at::linear(x.to(gate_.scalar_type()), gate_);
  }
  const at::Tensor scores = options_.score == Score::kSoftmax ? at::softmax(logits, -1) : at::sigmoid(logits);
  const bool by_kernels = router_->selects_top_k() && CanRouteOnDevice(logits, router_->shape().top_k);
  const Routed routed = by_kernels ? RouteByKernels(logits, scores, training) : Route(logits, scores, sequence, training);
  const bool grouped = Groups(x);
  const at::Tensor cast = grouped ? x.to(ComputeType(x)) : x;
  const bool moved = routed.device && CanMoveRows(cast);
  const at::Tensor rows = moved ? ToExperts(cast, *routed.device) : cast.index_select(0, routed.token);
  const at::Tensor served = grouped ? ByGroups(rows, routed) : ByLoop(rows, routed);
  if (moved && CanMoveRows(served)) return FromExperts(served, routed.gates, *routed.device);
  at::Tensor gates = routed.gates;
  if (routed.device) {  // by choice: into the order of pairs
    gates = at::zeros({routed.token.size(0)}, gates.options()).scatter(0, routed.device->place.to(at::kLong), gates.flatten());
  }
  const at::Tensor weighted = served * gates.unsqueeze(1);
  return at::zeros(x.sizes(), weighted.options()).index_add(0, routed.token, weighted);
}

MoeLayer::Routed MoeLayer::Route(const at::Tensor& logits, const at::Tensor& scores, size_t sequence, bool training) {
  const size_t experts = experts_.size();
  const std::vector<float> plain_logits = ToFloats(logits), plain_scores = Scores(plain_logits, experts, options_.score);
  const Selection selection = router_->Select(plain_logits, plain_scores, {.training = training, .sequence = sequence});
  const std::vector<int64_t> counts = selection.Counts();
  if (training) {
    loads_.Add(counts);
    step_ += StatsOf(counts, plain_scores);
    AddLosses(logits, scores, counts);
  }
  return {.token = ToTensor(selection.token, logits.device()), .offsets = ToTensor(selection.offsets, logits.device()), .host_offsets = selection.offsets,
          .gates = GatesOf(selection, logits, scores), .device = std::nullopt};
}

MoeLayer::Routed MoeLayer::RouteByKernels(const at::Tensor& logits, const at::Tensor& scores, bool training) {
  DeviceRouting device = RouteOnDevice(logits.to(at::kFloat), bias_.defined() ? bias_.to(at::kFloat) : bias_, router_->shape().top_k, options_.score);
  if (training) {
    const at::NoGradGuard no_grad;
    const at::Tensor tokens = at::full({1}, static_cast<double>(logits.size(0)), device.scores.options().dtype(at::kDouble));
    const at::Tensor sums = at::cat({device.counts.to(at::kDouble), device.scores.sum(0, /*keepdim=*/false, at::kDouble),
                                     device.scores.square().sum(at::kDouble).unsqueeze(0), tokens});
    device_sums_ = device_sums_.defined() ? device_sums_ + sums : sums;
  }
  if (training) {
    std::vector<int64_t> counts;
    if (wants_counts_) {  // which waits for the device
      const at::Tensor host = device.counts.to(at::kCPU, at::kLong);
      counts.assign(host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel());
    }
    AddLosses(logits, scores, counts);
  }
  at::Tensor gates = scores.gather(1, device.chosen);
  gates = gates / gates.sum(1, /*keepdim=*/true).clamp_min(1e-30);
  if (options_.gate == GateShape::kSqrt) gates = at::sqrt(gates + 1e-30);
  const at::Tensor token = device.token, offsets = device.offsets;
  return {.token = token, .offsets = offsets, .host_offsets = {}, .gates = gates, .device = std::move(device)};
}

void MoeLayer::AddLosses(const at::Tensor& logits, const at::Tensor& scores, const std::vector<int64_t>& counts) {
  auxiliary_loss_ = at::Tensor();
  if (wants_counts_) {
    const std::vector<double> weights = router_->LossWeights(counts);
    const at::Tensor weight = at::from_blob(const_cast<double*>(weights.data()), {static_cast<int64_t>(weights.size())}, at::TensorOptions().dtype(at::kDouble))
                                  .to(scores.device(), scores.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    auxiliary_loss_ = (scores.mean(0) * weight).sum();
  }
  if (options_.z_loss > 0) {
    const at::Tensor z = at::logsumexp(logits, {1}).square().mean() * options_.z_loss;
    auxiliary_loss_ = auxiliary_loss_.defined() ? auxiliary_loss_ + z : z;
  }
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

at::Tensor MoeLayer::ByLoop(const at::Tensor& rows, const Routed& routed) const {
  std::vector<int64_t> offsets = routed.host_offsets;
  if (offsets.empty()) {
    const at::Tensor host = routed.offsets.to(at::kCPU);
    offsets.assign(host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel());
  }
  std::vector<at::Tensor> served;
  for (size_t j = 0; j < experts_.size(); ++j) {
    if (offsets[j] == offsets[j + 1]) continue;
    served.push_back(SwiGlu(rows.slice(0, offsets[j], offsets[j + 1]), experts_[j].w1, experts_[j].w3, experts_[j].w2));
  }
  return served.empty() ? rows : at::cat(served);
}

bool MoeLayer::Groups(const at::Tensor& rows) const {
  if (options_.gemm == GemmKind::kLoop) return false;
  const at::ScalarType type = ComputeType(rows);
  // Rows of a whole number of 16 bytes: what its kernels load at once.
  const int64_t bytes = static_cast<int64_t>(c10::elementSize(type));
  const bool aligned = rows.size(1) * bytes % 16 == 0 && experts_[0].w1.size(0) * bytes % 16 == 0;
  if (options_.gemm == GemmKind::kGrouped) {
    TORCH_CHECK(aligned && HasGroupedProduct(rows.device(), type), "dispatch.gemm: grouped: LibTorch has no grouped product of ", c10::toString(type), " on ",
                rows.device().str(), " for experts of ", experts_[0].w1.size(0), " x ", rows.size(1), "; expected auto or loop");
    return true;
  }
  return rows.is_cuda() && type == at::kBFloat16 && aligned && HasGroupedProduct(rows.device(), type);
}

at::Tensor MoeLayer::ByGroups(const at::Tensor& rows, const Routed& routed) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::Tensor ends = routed.offsets.slice(0, 1).to(at::kInt);
  const auto product = [&](const at::Tensor& of, at::Tensor Expert::*member, at::Tensor* kept) {
    return at::_grouped_mm(of, Stacked(member, kept).to(of.scalar_type()).transpose(1, 2), ends);
  };
  const at::Tensor gate = product(rows, &Expert::w1, &stacked_[0]), up = product(rows, &Expert::w3, &stacked_[2]);
  return product(at::silu(gate) * up, &Expert::w2, &stacked_[1]);
}

at::Tensor MoeLayer::Stacked(at::Tensor Expert::*member, at::Tensor* kept) {
  if (kept->defined()) return *kept;
  const at::Tensor& first = experts_[0].*member;
  const auto distance = [&](const at::Tensor& of, const at::Tensor& from) { return of.is_alias_of(from) ? of.storage_offset() - from.storage_offset() : -1; };
  const int64_t step = experts_.size() > 1 ? distance(experts_[1].*member, first) : first.numel();
  bool even = step >= first.numel() && first.grad().defined();
  for (size_t j = 0; j < experts_.size() && even; ++j) {
    const at::Tensor& one = experts_[j].*member;
    const auto far = static_cast<int64_t>(j) * step;
    even = one.is_contiguous() && one.grad().defined() && one.grad().is_contiguous() && distance(one, first) == far && distance(one.grad(), first.grad()) == far;
  }
  if (!even) {
    std::vector<at::Tensor> all;
    for (const Expert& expert : experts_) all.push_back(expert.*member);
    return at::stack(all);
  }
  const auto view = [&](const at::Tensor& of) {
    return of.detach().as_strided({static_cast<int64_t>(experts_.size()), of.size(0), of.size(1)}, {step, of.size(1), 1}, of.storage_offset());
  };
  *kept = view(first);
  kept->requires_grad_(true);
  kept->mutable_grad() = view(first.grad());
  return *kept;
}

void MoeLayer::Collect() {
  if (!device_sums_.defined()) return;
  const at::Tensor host = std::exchange(device_sums_, at::Tensor()).to(at::kCPU);
  const auto* sums = host.const_data_ptr<double>();
  const size_t experts = experts_.size();
  MoeLayerStats counted = NoStats(experts);
  for (size_t j = 0; j < experts; ++j) {
    counted.counts[j] = static_cast<int64_t>(sums[j]);
    counted.prob_sum[j] = std::isfinite(sums[experts + j]) ? sums[experts + j] : 0;
  }
  counted.square_sum = std::isfinite(sums[2 * experts]) ? sums[2 * experts] : 0;
  counted.tokens = static_cast<int64_t>(sums[2 * experts + 1]);
  loads_.Add(counted.counts);
  step_ += counted;
}

MoeLayerStats MoeLayer::Statistics() {
  Collect();
  MoeLayerStats all = stats_;
  all += step_;
  all.margins = router_->margins();
  return all;
}

void MoeLayer::EndStep() {
  Collect();
  router_->EndStep(step_.counts);
  stats_ += step_;
  step_ = NoStats(experts_.size());
  if (!bias_.defined() || router_->server_owns_state()) return;
  std::vector<float> state = router_->state();
  const at::NoGradGuard no_grad;
  bias_.copy_(at::from_blob(state.data(), {static_cast<int64_t>(state.size())}, at::TensorOptions().dtype(at::kFloat)));
}

}  // namespace tributary::client
