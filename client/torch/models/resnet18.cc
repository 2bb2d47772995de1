// ResNet-18 (He, Zhang, Ren, Sun, CVPR 2016, Table 1, 18-layer, option B shortcuts). Names, shapes, order and initialisation are
// torchvision's, so that weights interchange: 11,689,512 parameters for 3 channels and 1000 classes. stem=small replaces the 7x7
// stride-2 convolution and its pooling by a 3x3 one of stride 1 (their CIFAR-10 variant's stem).
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/relu.h>

#include <cmath>
#include <optional>

#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

class ResNet18 : public ZooModel {
 public:
  ResNet18(std::vector<int64_t> input, int64_t classes, bool small_stem, at::TensorOptions options)
      : ZooModel(input, classes, options), small_stem_(small_stem) {
    conv1_ = AddPlainConv("conv1", input[0], 64, small_stem ? 3 : 7);
    bn1_ = AddBatchNorm("bn1", 64);
    int64_t channels = 64;
    for (int64_t layer = 1; layer <= 4; ++layer) {
      const int64_t out = int64_t{64} << (layer - 1);
      for (int64_t index = 0; index < 2; ++index) {
        const int64_t stride = layer > 1 && index == 0 ? 2 : 1;
        AddBlock("layer" + std::to_string(layer) + "." + std::to_string(index), channels, out, stride);
        channels = out;
      }
    }
    fc_ = AddLinear("fc", channels, classes);
  }

  at::Tensor Forward(const at::Tensor& x, bool training) override {
    at::Tensor h = small_stem_ ? Conv(x, conv1_, 1, 1) : Conv(x, conv1_, 2, 3);
    h = at::relu(ApplyBatchNorm(bn1_, h, training));
    if (!small_stem_) h = at::max_pool2d(h, 3, 2, 1);
    for (Block& block : blocks_) {
      at::Tensor y = at::relu(ApplyBatchNorm(block.bn1, Conv(h, block.conv1, block.stride, 1), training));
      y = ApplyBatchNorm(block.bn2, Conv(y, block.conv2, 1, 1), training);
      const at::Tensor shortcut =
          block.down_bn ? ApplyBatchNorm(*block.down_bn, Conv(h, block.down_conv, block.stride, 0), training) : h;
      h = at::relu(y.add(shortcut));
    }
    return Project(at::adaptive_avg_pool2d(h, {1, 1}).flatten(1), fc_.weight, fc_.bias);
  }

  bool repeatable() const override { return true; }

 private:
  struct Block {
    int64_t stride = 1;
    at::Tensor conv1, conv2, down_conv;
    Norm bn1, bn2;
    std::optional<Norm> down_bn;
  };

  static at::Tensor Conv(const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t padding) {
    return at::conv2d(x, weight, {}, stride, padding);
  }

  // Without bias; N(0, 2 / fan_out) (He et al. 2015, torchvision's choice).
  at::Tensor AddPlainConv(const std::string& name, int64_t in, int64_t out, int64_t kernel) {
    return Add(name + ".weight", {out, in, kernel, kernel}, Init::Normal(std::sqrt(2.0 / static_cast<double>(out * kernel * kernel))));
  }

  void AddBlock(const std::string& name, int64_t in, int64_t out, int64_t stride) {
    Block& block = blocks_.emplace_back();
    block.stride = stride;
    block.conv1 = AddPlainConv(name + ".conv1", in, out, 3);
    block.bn1 = AddBatchNorm(name + ".bn1", out);
    block.conv2 = AddPlainConv(name + ".conv2", out, out, 3);
    block.bn2 = AddBatchNorm(name + ".bn2", out);
    if (stride != 1 || in != out) {
      block.down_conv = AddPlainConv(name + ".downsample.0", in, out, 1);
      block.down_bn = AddBatchNorm(name + ".downsample.1", out);
    }
  }

  bool small_stem_;
  at::Tensor conv1_;
  Norm bn1_;
  std::vector<Block> blocks_;
  Affine fc_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeResNet18(const NamedParams& params, at::TensorOptions options) {
  TRIB_ASSIGN_OR_RETURN(std::vector<int64_t> input, params.Counts("input", 3));
  TRIB_ASSIGN_OR_RETURN(const int64_t classes, params.Count("classes"));
  TRIB_ASSIGN_OR_RETURN(const size_t stem, params.Choice("stem", {"imagenet", "small"}));
  return std::make_unique<ResNet18>(std::move(input), classes, stem == 1, options);
}

}  // namespace tributary::client
