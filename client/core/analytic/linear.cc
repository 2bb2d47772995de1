// One affine layer, scores W·x + b. Floating y: ½ mean squared error of one output; integer y: mean cross-entropy of `classes` outputs.
#include "client/core/classifier.h"

namespace tributary::client {
namespace {

class LinearRegression final : public AnalyticProblem {
 public:
  LinearRegression(size_t features, std::vector<double> x, std::vector<double> y) : features_(features), x_(std::move(x)), y_(std::move(y)) {}
  size_t dimension() const override { return features_ + 1; }
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors() const override {
    return {{"weight", {1, static_cast<int64_t>(features_)}}, {"bias", {1}}};
  }
  double weight() const override { return static_cast<double>(y_.size()); }
  size_t minibatch_rows() const override { return y_.size(); }

  double Loss(std::span<const double> w) const override {
    double sum = 0;
    for (size_t k = 0; k < y_.size(); ++k) {
      const double error = Error(w, k);
      sum += error * error;
    }
    return 0.5 * sum / static_cast<double>(y_.size());
  }

  void Gradient(std::span<const double> w, std::span<const uint32_t> rows, std::span<double> out) const override {
    std::fill(out.begin(), out.end(), 0.0);
    const size_t count = rows.empty() ? y_.size() : rows.size();
    for (size_t k = 0; k < count; ++k) {
      const size_t row = rows.empty() ? k : rows[k];
      const double error = Error(w, row) / static_cast<double>(count);
      for (size_t j = 0; j < features_; ++j) out[j] += error * x_[row * features_ + j];
      out[features_] += error;
    }
  }

  absl::Status Minimise(const ProximalTerm&, ExactCache*, std::span<double>) const override { return NoExactLinear(); }

 private:
  double Error(std::span<const double> w, size_t row) const {
    double score = w[features_];
    for (size_t j = 0; j < features_; ++j) score += w[j] * x_[row * features_ + j];
    return score - y_[row];
  }
  const size_t features_;
  const std::vector<double> x_, y_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeLinearProblem(const AnalyticParams& params, ProblemTensors tensors,
                                                                         const std::string& origin) {
  TRIB_ASSIGN_OR_RETURN(ProblemTensor x, TakeTensor(&tensors, "x", 2, origin));
  TRIB_ASSIGN_OR_RETURN(ProblemTensor y, TakeTensor(&tensors, "y", 1, origin));
  TRIB_RETURN_IF_ERROR(CheckRows(x, y, "y", origin));
  TRIB_RETURN_IF_ERROR(NoTensorLeft(tensors, {"x", "y"}, origin));
  if (!y.integer) return std::make_shared<const LinearRegression>(static_cast<size_t>(x.shape[1]), std::move(x.values), std::move(y.values));
  return MakeClassifier({.classes = params.classes, .l2 = 0, .bias = true, .origin = origin}, std::move(x), y);
}

}  // namespace tributary::client
