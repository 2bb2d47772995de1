// A decoder-only transformer over bytes (decoder.h) whose feed-forward part is a mixture of experts (moe/moe_stack.h). Names are those of
// transformers' Mixtral.
#include "client/torch/decoder.h"
#include "client/torch/models/registry.h"
#include "client/torch/moe/moe_stack.h"

namespace tributary::client {
namespace {

class MoeTransformer : public WithExperts<Decoder> {
 public:
  MoeTransformer(const DecoderShape& shape, const MoeShape& moe, at::TensorOptions options) : WithExperts(moe, shape, options) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer);
      AddAttention(prefix);
      experts_.AddLayer(prefix + ".block_sparse_moe", [this](std::string name, std::vector<int64_t> extents, TensorKind kind) {
        if (kind == TensorKind::kTrainable) return AddMatrix(std::move(name), extents[0], extents[1]);
        return Add(std::move(name), std::move(extents), Init::Constant(0), kind);
      });
    }
    AddHead();
  }

 protected:
  at::Tensor FeedForward(size_t layer, const at::Tensor& h, bool training) override {
    return experts_.Forward(layer, h.reshape({-1, h.size(2)}), static_cast<size_t>(h.size(1)), training).view(h.sizes());
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeMoeTransformer(const NamedParams& params, at::TensorOptions options) {
  TRIB_ASSIGN_OR_RETURN(const DecoderShape shape, DecoderShape::Of(params, "model 'moe_transformer'"));
  TRIB_ASSIGN_OR_RETURN(const MoeShape moe, MoeShape::Of(params, "model 'moe_transformer'", shape.width));
  return std::make_unique<MoeTransformer>(shape, moe, options);
}

}  // namespace tributary::client
