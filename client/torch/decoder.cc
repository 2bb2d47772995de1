#include "client/torch/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

#include <cmath>
#include <utility>

namespace tributary::client {
namespace {

constexpr double kDeviation = 0.02;
constexpr double kEpsilon = 1e-5;
constexpr double kRotaryBase = 10000;

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight) { return x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + kEpsilon) * weight; }

}  // namespace

absl::StatusOr<DecoderShape> DecoderShape::Of(const NamedParams& params, const std::string& owner) {
  DecoderShape shape;
  TRIB_ASSIGN_OR_RETURN(shape.input, params.Count("input"));
  TRIB_ASSIGN_OR_RETURN(shape.vocabulary, params.Count("vocabulary"));
  TRIB_ASSIGN_OR_RETURN(shape.layers, params.Count("layers"));
  TRIB_ASSIGN_OR_RETURN(shape.width, params.Count("width"));
  TRIB_ASSIGN_OR_RETURN(shape.heads, params.Count("heads"));
  if (shape.input < 2) return InvalidArgument("{}, parameter 'input': expected at least 2 tokens, one of which follows another, got {}", owner, shape.input);
  if (shape.layers > 1024) return InvalidArgument("{}, parameter 'layers': expected at most 1024, got {}", owner, shape.layers);
  if (shape.width % (2 * shape.heads) != 0) {
    return InvalidArgument("{}, parameter 'width': expected a multiple of twice the {} heads, got {}", owner, shape.heads, shape.width);
  }
  return shape;
}

Decoder::Decoder(const DecoderShape& shape, at::TensorOptions options) : ZooModel({shape.input}, shape.vocabulary, options), shape_(shape) {
  embedding_ = AddMatrix("model.embed_tokens.weight", shape.vocabulary, shape.width);
  const int64_t head_width = shape.width / shape.heads, half = head_width / 2;
  std::vector<double> cosines, sines;
  for (int64_t position = 0; position < shape.input; ++position) {
    for (int64_t i = 0; i < head_width; ++i) {
      const double angle = static_cast<double>(position) / std::pow(kRotaryBase, 2.0 * static_cast<double>(i % half) / static_cast<double>(head_width));
      cosines.push_back(std::cos(angle));
      sines.push_back(std::sin(angle));
    }
  }
  const auto table = [&](std::vector<double>& values) {
    return at::from_blob(values.data(), {shape.input, head_width}, at::TensorOptions().dtype(at::kDouble))
        .to(options.device(), options.dtype().toScalarType(), /*non_blocking=*/false, /*copy=*/true);
  };
  cos_ = table(cosines);
  sin_ = table(sines);
}

at::Tensor Decoder::AddMatrix(std::string name, int64_t out, int64_t in) { return Add(std::move(name), {out, in}, Init::Normal(kDeviation)); }

at::Tensor Decoder::AddProjection(const std::string& name, int64_t out, int64_t in) {
  at::Tensor weight = AddMatrix(name + ".weight", out, in);
  AddLinearLayer(name, weight);
  return weight;
}

void Decoder::AddAttention(const std::string& prefix) {
  Block block;
  block.q = AddProjection(prefix + ".self_attn.q_proj", shape_.width, shape_.width);
  block.k = AddProjection(prefix + ".self_attn.k_proj", shape_.width, shape_.width);
  block.v = AddProjection(prefix + ".self_attn.v_proj", shape_.width, shape_.width);
  block.o = AddProjection(prefix + ".self_attn.o_proj", shape_.width, shape_.width);
  block.input_norm = Add(prefix + ".input_layernorm.weight", {shape_.width}, Init::Constant(1));
  block.post_norm = Add(prefix + ".post_attention_layernorm.weight", {shape_.width}, Init::Constant(1));
  blocks_.push_back(std::move(block));
}

void Decoder::AddHead() {
  norm_ = Add("model.norm.weight", {shape_.width}, Init::Constant(1));
  head_ = AddProjection("lm_head", shape_.vocabulary, shape_.width);
}

at::Tensor Decoder::Forward(const at::Tensor& x, bool training) {
  at::Tensor h = at::embedding(embedding_, x.to(at::kLong));
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    h = h + Attention(block, RmsNorm(h, block.input_norm));
    h = h + FeedForward(layer, RmsNorm(h, block.post_norm), training);
  }
  return Project(RmsNorm(h, norm_), head_);
}

at::Tensor Decoder::Attention(const Block& block, const at::Tensor& h) const {
  const auto split = [&](const at::Tensor& flat) {
    return flat.view({h.size(0), h.size(1), shape_.heads, shape_.width / shape_.heads}).transpose(1, 2);
  };
  const at::Tensor q = Rotated(split(Project(h, block.q))), k = Rotated(split(Project(h, block.k))), v = split(Project(h, block.v));
  const at::Tensor mixed = at::scaled_dot_product_attention(q, k, v, {}, /*dropout_p=*/0.0, /*is_causal=*/true);
  return Project(mixed.transpose(1, 2).reshape(h.sizes()), block.o);
}

at::Tensor Decoder::Rotated(const at::Tensor& heads) const {
  const int64_t tokens = heads.size(2), half = heads.size(3) / 2;
  const at::Tensor turned = at::cat({-heads.slice(3, half), heads.slice(3, 0, half)}, 3);
  return heads * cos_.slice(0, 0, tokens) + turned * sin_.slice(0, 0, tokens);
}

at::Tensor SwiGlu(const at::Tensor& h, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down) {
  return at::linear(at::silu(at::linear(h, gate)) * at::linear(h, up), down);
}

}  // namespace tributary::client
