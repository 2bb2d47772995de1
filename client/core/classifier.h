// Mean cross-entropy of an affine layer: what `softmax` (no bias, l2) and `linear` with classes (bias, no l2) are.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "client/core/analytic/problem.h"

namespace tributary::client {

struct ClassifierOptions {
  int64_t classes = 0;
  double l2 = 0;
  bool bias = false;
  std::string origin;
};
absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeClassifier(const ClassifierOptions& options, ProblemTensor x, const ProblemTensor& y);

inline absl::Status NoExactLinear() {
  return InvalidArgument("model 'linear' has no solver exact: it exists for quadratic, wls and softmax; use solver sgd");
}

}  // namespace tributary::client
