#include "client/torch/chain.h"

#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/relu.h>

#include <utility>

namespace tributary::client {
namespace {

// The same images with the channels of a pixel side by side, which convolution and pooling keep to the end. LibTorch's pooling of float
// images on the CPU uses vectors for that order only: with the other a third of a training step was pooling.
at::Tensor ChannelsLast(const at::Tensor& x) {
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) return x;
  // Of one channel both orders are the same bytes, and only the strides tell LibTorch which is meant.
  if (x.size(1) == 1) return x.as_strided(x.sizes(), {x.size(2) * x.size(3), 1, x.size(3), 1});
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

void ChainModel::Add(ChainLayer layer, Affine tensors) {
  layers_.push_back(std::move(layer));
  tensors_of_.push_back(std::move(tensors));
}

void ChainModel::Conv(const std::string& name, int64_t in, int64_t out, int64_t kernel, int64_t padding) {
  Add({.kind = ChainLayer::Kind::kConv, .name = name, .padding = padding}, AddConv(name, in, out, kernel));
}

void ChainModel::Dense(const std::string& name, int64_t in, int64_t out) { Add({.kind = ChainLayer::Kind::kDense, .name = name}, AddLinear(name, in, out)); }

at::Tensor ChainModel::Forward(const at::Tensor& x, bool) {
  at::Tensor h = layers_[0].kind == ChainLayer::Kind::kConv ? ChannelsLast(x) : x;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Affine& tensors = tensors_of_[i];
    switch (layers_[i].kind) {
      case ChainLayer::Kind::kConv:
        h = at::conv2d(h, tensors.weight, tensors.bias, 1, layers_[i].padding);
        break;
      case ChainLayer::Kind::kDense:
        h = Project(h.flatten(1), tensors.weight, tensors.bias);
        break;
      case ChainLayer::Kind::kRelu:
        h = at::relu(h);
        break;
      case ChainLayer::Kind::kMaxPool:
        h = at::max_pool2d(h, 2);
        break;
    }
  }
  return h;
}

}  // namespace tributary::client
