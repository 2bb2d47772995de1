// Fully connected layers with ReLU between them. 159,010 parameters for 1x28x28, hidden=200, 10 classes; hidden=200x200 is the
// "2NN" of McMahan et al., AISTATS 2017, §3 (199,210 parameters).
#include <ATen/ops/relu.h>

#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

class Mlp : public ZooModel {
 public:
  Mlp(std::vector<int64_t> input, const std::vector<int64_t>& hidden, int64_t classes, at::TensorOptions options)
      : ZooModel(input, classes, options) {
    int64_t width = ElementsOf(input);
    for (int64_t next : hidden) {
      layers_.push_back(AddLinear("fc" + std::to_string(layers_.size() + 1), width, next));
      width = next;
    }
    layers_.push_back(AddLinear("fc" + std::to_string(layers_.size() + 1), width, classes));
  }

  at::Tensor Forward(const at::Tensor& x, bool) override {
    at::Tensor h = x.flatten(1);
    for (size_t i = 0; i < layers_.size(); ++i) {
      h = Project(h, layers_[i].weight, layers_[i].bias);
      if (i + 1 < layers_.size()) h = at::relu(h);
    }
    return h;
  }

 private:
  std::vector<Affine> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeMlp(const NamedParams& params, at::TensorOptions options) {
  TRIB_ASSIGN_OR_RETURN(std::vector<int64_t> input, params.Counts("input", 0));
  TRIB_ASSIGN_OR_RETURN(const std::vector<int64_t> hidden, params.Counts("hidden", 0));
  TRIB_ASSIGN_OR_RETURN(const int64_t classes, params.Count("classes"));
  return std::make_unique<Mlp>(std::move(input), hidden, classes, options);
}

}  // namespace tributary::client
