// A decoder-only transformer over bytes (decoder.h) whose feed-forward part is SwiGLU. 918,656 parameters by default.
#include <ATen/TensorOperators.h>
#include <ATen/ops/silu.h>

#include "client/torch/decoder.h"
#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

class Transformer : public Decoder {
 public:
  Transformer(const DecoderShape& shape, int64_t hidden, at::TensorOptions options) : Decoder(shape, options) {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer);
      AddAttention(prefix);
      Mlp mlp;
      mlp.gate = AddProjection(prefix + ".mlp.gate_proj", hidden, shape.width);
      mlp.up = AddProjection(prefix + ".mlp.up_proj", hidden, shape.width);
      mlp.down = AddProjection(prefix + ".mlp.down_proj", shape.width, hidden);
      mlps_.push_back(std::move(mlp));
    }
    AddHead();
  }
  bool repeatable() const override { return true; }

 protected:
  at::Tensor FeedForward(size_t layer, const at::Tensor& h, bool) override {
    const Mlp& mlp = mlps_[layer];
    return Project(at::silu(Project(h, mlp.gate)) * Project(h, mlp.up), mlp.down);
  }

 private:
  struct Mlp {
    at::Tensor gate, up, down;
  };
  std::vector<Mlp> mlps_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeTransformer(const NamedParams& params, at::TensorOptions options) {
  TRIB_ASSIGN_OR_RETURN(const DecoderShape shape, DecoderShape::Of(params, "model 'transformer'"));
  TRIB_ASSIGN_OR_RETURN(const int64_t hidden, params.Count("hidden"));
  return std::make_unique<Transformer>(shape, hidden, options);
}

}  // namespace tributary::client
