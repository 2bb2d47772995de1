// The decoder-only transformer of Llama (Touvron et al. 2023): token embedding; blocks of RMSNorm, causal attention with rotary positions
// (Su et al. 2021, halves rotated as transformers does) and a feed-forward part, both added to the residual; RMSNorm; untied output layer.
// Names are those of transformers' Llama, so that weights interchange. No biases, no dropout. RMSNorm's ε is 1e−5, the rotary base 10,000.
//
// A subclass says what the feed-forward part is. Its constructor calls AddAttention and adds its own tensors for each layer in turn, then
// AddHead. x is [B, T <= input] of token numbers; Forward gives [B, T, vocabulary]: logits of each position's next token.
// Threads and errors: as Model.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "common/named_params.h"
#include "client/torch/model.h"

namespace tributary::client {

struct DecoderShape {
  int64_t input = 0;        // tokens of one example
  int64_t vocabulary = 0;
  int64_t layers = 0;
  int64_t width = 0;        // a multiple of 2·heads
  int64_t heads = 0;

  // `owner` as messages call the model. INVALID_ARGUMENT: parameters, or a width that the heads do not divide.
  static absl::StatusOr<DecoderShape> Of(const NamedParams& params, const std::string& owner);
};

class Decoder : public ZooModel {
 public:
  at::Tensor Forward(const at::Tensor& x, bool training) override;
  bool next_token() const override { return true; }

 protected:
  Decoder(const DecoderShape& shape, at::TensorOptions options);
  const DecoderShape& shape() const { return shape_; }
  at::Tensor AddMatrix(std::string name, int64_t out, int64_t in);  // N(0, 0.02²), as transformers begins
  at::Tensor AddProjection(const std::string& name, int64_t out, int64_t in);  // the same, one for Project: name.weight
  void AddAttention(const std::string& prefix);
  void AddHead();
  // h: [B, T, width], already normalised.
  virtual at::Tensor FeedForward(size_t layer, const at::Tensor& h, bool training) = 0;

 private:
  struct Block {
    at::Tensor q, k, v, o, input_norm, post_norm;
  };
  at::Tensor Attention(const Block& block, const at::Tensor& h) const;
  at::Tensor Rotated(const at::Tensor& heads) const;

  DecoderShape shape_;
  at::Tensor embedding_, norm_, head_;
  at::Tensor cos_, sin_;  // [input, width / heads]
  std::vector<Block> blocks_;
};

// down(silu(gate(h)) · up(h)) (SwiGLU: Shazeer 2020).
at::Tensor SwiGlu(const at::Tensor& h, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down);

}  // namespace tributary::client
