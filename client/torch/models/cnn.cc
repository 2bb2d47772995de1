// A small convolutional network for 28x28 and 32x32 images, shaped after LeNet-5 (LeCun et al. 1998):
//   conv 5x5 (width) - ReLU - max 2x2 - conv 3x3 (2·width) - ReLU - max 2x2 - dense (hidden) - ReLU - dense (classes)
// 207,178 parameters for 1x28x28, width=16, hidden=128, 10 classes.
#include <ATen/ops/conv2d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/relu.h>

#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

struct CnnShape {
  std::vector<int64_t> input;  // channels, height, width
  int64_t classes = 0;
  int64_t width = 0;
  int64_t hidden = 0;
};

class Cnn : public ZooModel {
 public:
  Cnn(const CnnShape& shape, at::TensorOptions options)
      : ZooModel(shape.input, shape.classes, options),
        conv1_(AddConv("conv1", shape.input[0], shape.width, 5)),
        conv2_(AddConv("conv2", shape.width, 2 * shape.width, 3)),
        fc1_(AddLinear("fc1", 2 * shape.width * (shape.input[1] / 4) * (shape.input[2] / 4), shape.hidden)),
        fc2_(AddLinear("fc2", shape.hidden, shape.classes)) {}

  at::Tensor Forward(const at::Tensor& x, bool) override {
    at::Tensor h = at::relu(at::max_pool2d(at::conv2d(ChannelsLast(x), conv1_.weight, conv1_.bias, 1, /*padding=*/2), 2));
    h = at::relu(at::max_pool2d(at::conv2d(h, conv2_.weight, conv2_.bias, 1, /*padding=*/1), 2));
    h = at::relu(Project(h.flatten(1), fc1_.weight, fc1_.bias));
    return Project(h, fc2_.weight, fc2_.bias);
  }

 private:
  // The same images with the channels of a pixel side by side, which convolution and pooling keep to the end. LibTorch's pooling of float
  // images on the CPU uses vectors for that order only: with the other a third of a training step was pooling.
  static at::Tensor ChannelsLast(const at::Tensor& x) {
    if (!x.is_cpu() || x.scalar_type() != at::kFloat) return x;
    // Of one channel both orders are the same bytes, and only the strides tell LibTorch which is meant.
    if (x.size(1) == 1) return x.as_strided(x.sizes(), {x.size(2) * x.size(3), 1, x.size(3), 1});
    return x.contiguous(at::MemoryFormat::ChannelsLast);
  }

  Affine conv1_, conv2_, fc1_, fc2_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeCnn(const NamedParams& params, at::TensorOptions options) {
  CnnShape shape;
  TRIB_ASSIGN_OR_RETURN(shape.input, params.Counts("input", 3));
  TRIB_ASSIGN_OR_RETURN(shape.classes, params.Count("classes"));
  TRIB_ASSIGN_OR_RETURN(shape.width, params.Count("width"));
  TRIB_ASSIGN_OR_RETURN(shape.hidden, params.Count("hidden"));
  if (shape.input[1] < 4 || shape.input[2] < 4) {
    return InvalidArgument("model 'cnn', parameter 'input': expected images of at least 4x4, got {}x{}", shape.input[1], shape.input[2]);
  }
  return std::make_unique<Cnn>(shape, options);
}

}  // namespace tributary::client
