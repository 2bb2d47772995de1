// One affine layer on the flattened input. 7,850 parameters for 1x28x28 and 10 classes.
#include "client/torch/chain.h"
#include "client/torch/models/registry.h"

namespace tributary::client {
namespace {

class Linear : public ChainModel {
 public:
  Linear(std::vector<int64_t> input, int64_t classes, at::TensorOptions options) : ChainModel(input, classes, options) {
    Dense("fc", ElementsOf(input), classes);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> MakeLinear(const NamedParams& params, at::TensorOptions options) {
  TRIB_ASSIGN_OR_RETURN(std::vector<int64_t> input, params.Counts("input", 0));
  TRIB_ASSIGN_OR_RETURN(const int64_t classes, params.Count("classes"));
  return std::make_unique<Linear>(std::move(input), classes, options);
}

}  // namespace tributary::client
