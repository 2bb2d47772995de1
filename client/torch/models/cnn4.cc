// Four convolutions of 3x3 without padding and two dense layers, for small colour images: what pfl-research's CIFAR-10 benchmark trains
// (Granqvist et al. 2024, arXiv 2404.06430, "simple CNN"), without its dropout:
//   conv (width) - ReLU - conv (width) - ReLU - max 2x2 - conv (2·width) - ReLU - conv (2·width) - ReLU - max 2x2 - dense (hidden) - ReLU - dense
// 890,410 parameters for 3x32x32, width=32, hidden=512, 10 classes.
#include "client/torch/chain.h"
#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

struct Cnn4Shape {
  std::vector<int64_t> input;  // channels, height, width
  int64_t classes = 0;
  int64_t width = 0;
  int64_t hidden = 0;
};

// Of one side of an image after two convolutions and a pooling.
int64_t AfterStage(int64_t extent) { return (extent - 4) / 2; }

class Cnn4 : public ChainModel {
 public:
  Cnn4(const Cnn4Shape& shape, at::TensorOptions options) : ChainModel(shape.input, shape.classes, options) {
    int64_t channels = shape.input[0];
    for (int64_t stage = 0; stage < 2; ++stage) {
      const int64_t width = shape.width << stage;
      for (int64_t part = 1; part <= 2; ++part) {
        Conv("conv" + std::to_string(2 * stage + part), channels, width, 3, /*padding=*/0);
        Relu();
        channels = width;
      }
      MaxPool();
    }
    Dense("fc1", channels * AfterStage(AfterStage(shape.input[1])) * AfterStage(AfterStage(shape.input[2])), shape.hidden);
    Relu();
    Dense("fc2", shape.hidden, shape.classes);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeCnn4(const NamedParams& params, at::TensorOptions options) {
  Cnn4Shape shape;
  TRIB_ASSIGN_OR_RETURN(shape.input, params.Counts("input", 3));
  TRIB_ASSIGN_OR_RETURN(shape.classes, params.Count("classes"));
  TRIB_ASSIGN_OR_RETURN(shape.width, params.Count("width"));
  TRIB_ASSIGN_OR_RETURN(shape.hidden, params.Count("hidden"));
  if (shape.input[1] < 16 || shape.input[2] < 16) {
    return InvalidArgument("model 'cnn4', parameter 'input': expected images of at least 16x16, got {}x{}", shape.input[1], shape.input[2]);
  }
  return std::make_unique<Cnn4>(shape, options);
}

}  // namespace tributary::client
