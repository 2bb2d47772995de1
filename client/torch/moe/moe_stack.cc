#include "client/torch/moe/moe_stack.h"

#include <ATen/TensorOperators.h>

#include <algorithm>

#include "common/check.h"
#include "common/log.h"

namespace tributary::client {

absl::StatusOr<MoeShape> MoeShape::Of(const NamedParams& params, const std::string& owner, int64_t width) {
  MoeShape shape;
  shape.width = width;
  TRIB_ASSIGN_OR_RETURN(shape.experts, params.Count("experts"));
  TRIB_ASSIGN_OR_RETURN(shape.top_k, params.Count("top_k"));
  TRIB_ASSIGN_OR_RETURN(shape.expert_hidden, params.Count("expert_hidden"));
  if (shape.experts > 1024) return InvalidArgument("{}, parameter 'experts': expected at most 1024, got {}", owner, shape.experts);
  TRIB_ASSIGN_OR_RETURN(const size_t score, params.Choice("score", {"softmax", "sigmoid"}));
  shape.options.score = score == 0 ? Score::kSoftmax : Score::kSigmoid;
  TRIB_ASSIGN_OR_RETURN(const size_t gate, params.Choice("gate", {"linear", "sqrt"}));
  shape.options.gate = gate == 0 ? GateShape::kLinear : GateShape::kSqrt;
  TRIB_ASSIGN_OR_RETURN(const size_t gemm, params.Choice("dispatch.gemm", {"auto", "loop", "grouped"}));
  shape.options.gemm = gemm == 0 ? GemmKind::kAuto : gemm == 1 ? GemmKind::kLoop : GemmKind::kGrouped;
  TRIB_ASSIGN_OR_RETURN(shape.options.z_loss, params.Number("aux.z", 0, 1e3));
  shape.router = params.NameOf("router");
  shape.router_params = params.Group("router");
  TRIB_ASSIGN_OR_RETURN(const RouterEntry entry, FindRouter(shape.router));
  if (entry.foresight == Foresight::kAlways) {
    return InvalidArgument("{}, parameter 'router': {} looks ahead in the sequence, which a causal model cannot; choose another router", owner, shape.router);
  }
  const RouterShape of_router{.experts = static_cast<size_t>(shape.experts), .top_k = static_cast<size_t>(shape.top_k)};
  TRIB_ASSIGN_OR_RETURN(const auto router, MakeRouter(shape.router, shape.router_params, of_router));
  if (entry.foresight == Foresight::kTraining) {
    TRIB_LOG(warn, "{}: router {} solves for the whole batch: in training tokens are routed with a view of later ones", owner, shape.router);
  }
  TRIB_ASSIGN_OR_RETURN(const double weight, params.Number("aux.lbl", 0, 1e6));
  TRIB_ASSIGN_OR_RETURN(const size_t scope, params.Choice("aux.lbl_scope", {"none", "local", "global"}));
  TRIB_ASSIGN_OR_RETURN(const double local_fraction, params.Number("aux.lbl_local_fraction", 0, 1));
  TRIB_RETURN_IF_ERROR(params.Number("aux.lbl_ema", 0, 0.999999).status());
  if (weight == 0 || scope == 0) return shape;
  const std::vector<int64_t> any(of_router.experts, 1);
  if (!router->LossWeights(any).empty()) {
    return InvalidArgument("{}, parameter 'aux.lbl': router {} has a balance loss of its own; expected 0, got {}", owner, shape.router, weight);
  }
  shape.loss = scope == 1 ? "lbl" : "global_lbl";
  shape.loss_params["weight"] = fmt::format("{}", weight);
  if (scope == 2) shape.loss_params["local_fraction"] = fmt::format("{}", local_fraction);
  return shape;
}

std::unique_ptr<Router> MoeShape::NewRouter() const {
  const RouterShape of_router{.experts = static_cast<size_t>(experts), .top_k = static_cast<size_t>(top_k)};
  auto made = MakeRouter(router, router_params, of_router);
  TRIB_CHECK(made.ok(), "a router that could be made once");
  if (loss.empty()) return *std::move(made);
  auto beside = MakeRouter(loss, loss_params, of_router);
  TRIB_CHECK(beside.ok(), "a balance loss that is in range: {}", MessageOf(beside.status()));
  return WithBalanceLoss(*std::move(made), *std::move(beside));
}

void MoeStack::AddLayer(const std::string& prefix, const AddTensor& add) {
  const std::unique_ptr<Router> router = shape_.NewRouter();
  at::Tensor gate = add(prefix + ".gate.weight", {shape_.experts, shape_.width}, TensorKind::kTrainable), bias;
  if (!router->state().empty()) {
    bias = add(prefix + ".gate.e_score_correction_bias", {shape_.experts}, router->server_owns_state() ? TensorKind::kServerOwned : TensorKind::kBuffer);
  }
  std::vector<Expert> experts;
  for (int64_t e = 0; e < shape_.experts; ++e) {
    const std::string name = prefix + ".experts." + std::to_string(e);
    Expert expert;
    expert.w1 = add(name + ".w1.weight", {shape_.expert_hidden, shape_.width}, TensorKind::kTrainable);
    expert.w2 = add(name + ".w2.weight", {shape_.width, shape_.expert_hidden}, TensorKind::kTrainable);
    expert.w3 = add(name + ".w3.weight", {shape_.expert_hidden, shape_.width}, TensorKind::kTrainable);
    experts.push_back(std::move(expert));
  }
  layers_.emplace_back(shape_.options, std::move(gate), std::move(experts), std::move(bias));
}

void MoeStack::BeginTask() {
  for (MoeLayer& layer : layers_) layer.Begin(shape_.NewRouter());
}

absl::Status MoeStack::TakeLoad(const GlobalMoe& load) {
  if (load.layers.size() != layers_.size()) return InvalidArgument("task: expected the load of {} layers, got {}", layers_.size(), load.layers.size());
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (load.layers[l].share.size() != static_cast<size_t>(shape_.experts)) {
      return InvalidArgument("task: layer {}: expected the load of {} experts, got {}", l, shape_.experts, load.layers[l].share.size());
    }
    layers_[l].router().SetGlobalLoad(load.layers[l]);
  }
  return absl::OkStatus();
}

at::Tensor MoeStack::AuxiliaryLoss() const {
  at::Tensor sum;
  for (const MoeLayer& layer : layers_) {
    if (layer.auxiliary_loss().defined()) sum = sum.defined() ? sum + layer.auxiliary_loss() : layer.auxiliary_loss();
  }
  return sum.defined() ? sum / static_cast<double>(layers_.size()) : sum;
}

void MoeStack::EndStep() {
  for (MoeLayer& layer : layers_) layer.EndStep();
}

std::map<std::string, double> MoeStack::Metrics() const {
  double average = 0, largest = 0, effective = 0;
  for (const MoeLayer& layer : layers_) {
    if (layer.loads().counts().empty()) return {};
    average += layer.loads().average() / static_cast<double>(layers_.size());
    largest = std::max(largest, layer.loads().largest());
    effective += EffectiveExperts(layer.loads().counts()) / static_cast<double>(layers_.size());
  }
  return {{"moe_avg_max_vio", average}, {"moe_sup_max_vio", largest}, {"moe_effective_experts", effective}};
}

MoeStats MoeStack::Statistics() {
  MoeStats stats;
  for (MoeLayer& layer : layers_) stats.push_back(layer.Statistics());
  return stats;
}

}  // namespace tributary::client
