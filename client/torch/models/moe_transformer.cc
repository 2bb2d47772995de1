// A decoder-only transformer over bytes (decoder.h) whose feed-forward part is a mixture of experts (moe/moe_layer.h). Names are those of
// transformers' Mixtral; a router's bias is the buffer gate.e_score_correction_bias. The auxiliary loss is the layers' mean.
//
// A router that looks ahead in a sequence is refused, as the model is causal; one that looks at the batch while training is said.
#include <ATen/TensorOperators.h>

#include <algorithm>

#include "client/core/moe/router.h"
#include "client/torch/decoder.h"
#include "client/torch/models/registry.h"
#include "client/torch/moe/moe_layer.h"
#include "common/check.h"
#include "common/log.h"

namespace tributary::client {
namespace {

struct MoeShape {
  DecoderShape decoder;
  int64_t experts = 0, top_k = 0, expert_hidden = 0;
  MoeOptions options;
  std::string router;
  ParamMap router_params;

  RouterShape OfRouter() const { return {.experts = static_cast<size_t>(experts), .top_k = static_cast<size_t>(top_k)}; }
};

class MoeTransformer : public Decoder {
 public:
  MoeTransformer(const MoeShape& shape, bool biased, at::TensorOptions options) : Decoder(shape.decoder, options), moe_(shape) {
    for (int64_t layer = 0; layer < shape.decoder.layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer);
      AddAttention(prefix);
      const std::string moe = prefix + ".block_sparse_moe";
      at::Tensor gate = AddMatrix(moe + ".gate.weight", shape.experts, shape.decoder.width), bias;
      if (biased) bias = Add(moe + ".gate.e_score_correction_bias", {shape.experts}, Init::Constant(0), TensorKind::kBuffer);
      std::vector<Expert> experts;
      for (int64_t e = 0; e < shape.experts; ++e) {
        const std::string name = moe + ".experts." + std::to_string(e);
        Expert expert;
        expert.w1 = AddMatrix(name + ".w1.weight", shape.expert_hidden, shape.decoder.width);
        expert.w2 = AddMatrix(name + ".w2.weight", shape.decoder.width, shape.expert_hidden);
        expert.w3 = AddMatrix(name + ".w3.weight", shape.expert_hidden, shape.decoder.width);
        experts.push_back(std::move(expert));
      }
      layers_.emplace_back(shape.options, std::move(gate), std::move(experts), std::move(bias));
    }
    AddHead();
  }

  void BeginTask() override {
    for (MoeLayer& layer : layers_) {
      auto router = MakeRouter(moe_.router, moe_.router_params, moe_.OfRouter());
      TRIB_CHECK(router.ok(), "a router that could be made once");
      layer.Begin(*std::move(router));
    }
  }

  at::Tensor AuxiliaryLoss() const override {
    at::Tensor sum;
    for (const MoeLayer& layer : layers_) {
      if (layer.auxiliary_loss().defined()) sum = sum.defined() ? sum + layer.auxiliary_loss() : layer.auxiliary_loss();
    }
    return sum.defined() ? sum / static_cast<double>(layers_.size()) : sum;
  }

  void EndStep() override {
    for (MoeLayer& layer : layers_) layer.EndStep();
  }

  std::map<std::string, double> Metrics() const override {
    double average = 0, largest = 0, effective = 0;
    for (const MoeLayer& layer : layers_) {
      if (layer.loads().counts().empty()) return {};
      average += layer.loads().average() / static_cast<double>(layers_.size());
      largest = std::max(largest, layer.loads().largest());
      effective += EffectiveExperts(layer.loads().counts()) / static_cast<double>(layers_.size());
    }
    return {{"moe_avg_max_vio", average}, {"moe_sup_max_vio", largest}, {"moe_effective_experts", effective}};
  }

 protected:
  at::Tensor FeedForward(size_t layer, const at::Tensor& h, bool training) override {
    return layers_[layer].Forward(h.reshape({-1, h.size(2)}), static_cast<size_t>(h.size(1)), training).view(h.sizes());
  }

 private:
  MoeShape moe_;
  std::vector<MoeLayer> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeMoeTransformer(const NamedParams& params, at::TensorOptions options) {
  MoeShape shape;
  TRIB_ASSIGN_OR_RETURN(shape.decoder, DecoderShape::Of(params, "model 'moe_transformer'"));
  TRIB_ASSIGN_OR_RETURN(shape.experts, params.Count("experts"));
  TRIB_ASSIGN_OR_RETURN(shape.top_k, params.Count("top_k"));
  TRIB_ASSIGN_OR_RETURN(shape.expert_hidden, params.Count("expert_hidden"));
  TRIB_ASSIGN_OR_RETURN(const size_t score, params.Choice("score", {"softmax", "sigmoid"}));
  shape.options.score = score == 0 ? Score::kSoftmax : Score::kSigmoid;
  TRIB_ASSIGN_OR_RETURN(const size_t gate, params.Choice("gate", {"linear", "sqrt"}));
  shape.options.gate = gate == 0 ? GateShape::kLinear : GateShape::kSqrt;
  TRIB_ASSIGN_OR_RETURN(shape.options.z_loss, params.Number("z", 0, 1e3));
  shape.router = params.NameOf("router");
  shape.router_params = params.Group("router");
  if (shape.experts > 1024) return InvalidArgument("model 'moe_transformer', parameter 'experts': expected at most 1024, got {}", shape.experts);
  TRIB_ASSIGN_OR_RETURN(const RouterEntry entry, FindRouter(shape.router));
  if (entry.foresight == Foresight::kAlways) {
    return InvalidArgument("model 'moe_transformer', parameter 'router': {} looks ahead in the sequence, which a causal model cannot; choose another router",
                           shape.router);
  }
  TRIB_ASSIGN_OR_RETURN(const auto router, MakeRouter(shape.router, shape.router_params, shape.OfRouter()));
  if (entry.foresight == Foresight::kTraining) {
    TRIB_LOG(warn, "model 'moe_transformer': router {} solves for the whole batch: in training tokens are routed with a view of later ones", shape.router);
  }
  return std::make_unique<MoeTransformer>(shape, !router->state().empty(), options);
}

}  // namespace tributary::client
