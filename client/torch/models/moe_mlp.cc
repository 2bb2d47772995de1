// A byte-level language model without attention: at each position the embeddings of the last `context` bytes and the histogram of the last
// `history` bytes (which tell the language) are projected to `width`, and a mixture of experts (moe/moe_stack.h) makes of them what the
// next byte is told from. Small enough for a processor; what its experts specialise in can be seen in minutes (moe_lora.md §4).
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/silu.h>

#include <cmath>

#include "client/torch/models/registry.h"
#include "client/torch/moe/moe_stack.h"

namespace tributary::client {
namespace {

struct Shape {
  int64_t input = 0, vocabulary = 0, embedding = 0, context = 0, history = 0, width = 0;
};

// Of variance 1/in: what a layer's products keep of their input's.
Init Fan(int64_t in) { return Init::Uniform(std::sqrt(3.0 / static_cast<double>(in))); }

class MoeMlp : public WithExperts<ZooModel> {
 public:
  MoeMlp(const Shape& shape, const MoeShape& moe, at::TensorOptions options)
      : WithExperts(moe, std::vector<int64_t>{shape.input}, shape.vocabulary, options), shape_(shape) {
    embedding_ = Add("embed.weight", {shape.vocabulary, shape.embedding}, Init::Normal(1));
    context_.weight = Add("context.weight", {shape.width, shape.context * shape.embedding}, Fan(shape.context * shape.embedding));
    AddLinearLayer("context", context_.weight);
    context_.bias = Add("context.bias", {shape.width}, Init::Constant(0));
    history_ = Add("history.weight", {shape.width, shape.vocabulary}, Init::Uniform(1));  // of shares that sum to 1
    experts_.AddLayer("moe", [this](std::string name, std::vector<int64_t> extents, TensorKind kind) {
      const Init init = kind == TensorKind::kTrainable ? Fan(extents[1]) : Init::Constant(0);
      return Add(std::move(name), std::move(extents), init, kind);
    });
    head_ = AddLinear("head", shape.width, shape.vocabulary);
  }
  bool next_token() const override { return true; }

  at::Tensor Forward(const at::Tensor& x, bool training) override {
    const at::Tensor bytes = x.to(at::kLong);
    const int64_t length = bytes.size(1);
    const at::Tensor padded = at::constant_pad_nd(at::embedding(embedding_, bytes), {0, 0, shape_.context - 1, 0});
    std::vector<at::Tensor> window;
    for (int64_t back = 0; back < shape_.context; ++back) window.push_back(padded.slice(1, back, back + length));
    const at::Tensor seen = at::one_hot(bytes, shape_.vocabulary).to(embedding_.scalar_type()).cumsum(1);
    const at::Tensor last = seen - at::constant_pad_nd(seen, {0, 0, shape_.history, 0}).slice(1, 0, length);
    const at::Tensor share = last / last.sum(2, /*keepdim=*/true);
    const at::Tensor h = at::silu(Project(at::cat(window, 2), context_.weight, context_.bias) + at::linear(share, history_));
    const at::Tensor mixed = experts_.Forward(0, h.reshape({-1, shape_.width}), static_cast<size_t>(length), training);
    return Project(mixed.view(h.sizes()), head_.weight, head_.bias);
  }

 private:
  const Shape shape_;
  at::Tensor embedding_, history_;
  Affine context_, head_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeMoeMlp(const NamedParams& params, at::TensorOptions options) {
  Shape shape;
  TRIB_ASSIGN_OR_RETURN(shape.input, params.Count("input"));
  TRIB_ASSIGN_OR_RETURN(shape.vocabulary, params.Count("vocabulary"));
  TRIB_ASSIGN_OR_RETURN(shape.embedding, params.Count("embedding"));
  TRIB_ASSIGN_OR_RETURN(shape.context, params.Count("context"));
  TRIB_ASSIGN_OR_RETURN(shape.history, params.Count("history"));
  TRIB_ASSIGN_OR_RETURN(shape.width, params.Count("width"));
  if (shape.input < 2) return InvalidArgument("model 'moe_mlp', parameter 'input': expected at least 2 bytes, one of which follows another, got {}", shape.input);
  TRIB_ASSIGN_OR_RETURN(const MoeShape moe, MoeShape::Of(params, "model 'moe_mlp'", shape.width));
  return std::make_unique<MoeMlp>(shape, moe, options);
}

}  // namespace tributary::client
