// Softmax regression: mean cross-entropy of the scores W·x plus (l2/2)‖W‖², no bias. Its exact proximal step is Newton's method.
#include "client/core/classifier.h"

namespace tributary::client {

absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeSoftmax(const AnalyticParams& params, ProblemTensors tensors,
                                                                   const std::string& origin) {
  TRIB_ASSIGN_OR_RETURN(ProblemTensor x, TakeTensor(&tensors, "x", 2, origin));
  TRIB_ASSIGN_OR_RETURN(const ProblemTensor y, TakeTensor(&tensors, "y", 1, origin));
  TRIB_RETURN_IF_ERROR(CheckRows(x, y, "y", origin));
  TRIB_RETURN_IF_ERROR(NoTensorLeft(tensors, {"x", "y"}, origin));
  if (!y.integer) return InvalidArgument("{}: tensor 'y': expected integer classes, got floating values", origin);
  return MakeClassifier({.classes = params.classes, .l2 = params.l2, .bias = false, .origin = origin}, std::move(x), y);
}

}  // namespace tributary::client
