// Fully connected layers with ReLU between them. 159,010 parameters for 1x28x28, hidden=200, 10 classes; hidden=200x200 is the
// "2NN" of McMahan et al., AISTATS 2017, §3 (199,210 parameters).
#include "client/torch/chain.h"
#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

class Mlp : public ChainModel {
 public:
  Mlp(std::vector<int64_t> input, const std::vector<int64_t>& hidden, int64_t classes, at::TensorOptions options) : ChainModel(input, classes, options) {
    int64_t width = ElementsOf(input);
    size_t layer = 1;
    for (int64_t next : hidden) {
      Dense("fc" + std::to_string(layer++), width, next);
      Relu();
      width = next;
    }
    Dense("fc" + std::to_string(layer), width, classes);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeMlp(const NamedParams& params, at::TensorOptions options) {
  TRIB_ASSIGN_OR_RETURN(std::vector<int64_t> input, params.Counts("input", 0));
  TRIB_ASSIGN_OR_RETURN(const std::vector<int64_t> hidden, params.Counts("hidden", 0));
  TRIB_ASSIGN_OR_RETURN(const int64_t classes, params.Count("classes"));
  return std::make_unique<Mlp>(std::move(input), hidden, classes, options);
}

}  // namespace tributary::client
