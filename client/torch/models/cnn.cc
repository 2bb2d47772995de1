// A small convolutional network for 28x28 and 32x32 images, shaped after LeNet-5 (LeCun et al. 1998):
//   conv 5x5 (width) - ReLU - max 2x2 - conv 3x3 (2·width) - ReLU - max 2x2 - dense (hidden) - ReLU - dense (classes)
// 207,178 parameters for 1x28x28, width=16, hidden=128, 10 classes.
#include "client/torch/chain.h"
#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

struct CnnShape {
  std::vector<int64_t> input;  // channels, height, width
  int64_t classes = 0;
  int64_t width = 0;
  int64_t hidden = 0;
};

class Cnn : public ChainModel {
 public:
  Cnn(const CnnShape& shape, at::TensorOptions options) : ChainModel(shape.input, shape.classes, options) {
    Conv("conv1", shape.input[0], shape.width, 5, /*padding=*/2);
    MaxPool();
    Relu();
    Conv("conv2", shape.width, 2 * shape.width, 3, /*padding=*/1);
    MaxPool();
    Relu();
    Dense("fc1", 2 * shape.width * (shape.input[1] / 4) * (shape.input[2] / 4), shape.hidden);
    Relu();
    Dense("fc2", shape.hidden, shape.classes);
  }
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
