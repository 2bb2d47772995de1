// Weighted least squares J(w) = Σ_j weights_j (y_j − x_jᵀw)²: no ½ and no mean, as in the ADMM literature it serves (Lari et al. 2024).
// ∇J = 2Xᵀ W (Xw − y). Its exact proximal step solves (2XᵀWX + μI) w = 2XᵀWy − v + μs; both products are formed once.
#include <cmath>

#include "client/core/analytic/problem.h"

namespace tributary::client {
namespace {

class Wls final : public AnalyticProblem {
 public:
  Wls(size_t d, const std::vector<double>& x, const std::vector<double>& y, const std::vector<double>& weights, std::string origin)
      : rows_(y.size()), gram_(d * d, 0.0), moment_(d, 0.0), origin_(std::move(origin)) {
    for (size_t k = 0; k < rows_; ++k) {
      const double* row = &x[k * d];
      square_ += weights[k] * y[k] * y[k];
      for (size_t i = 0; i < d; ++i) {
        const double scaled = 2 * weights[k] * row[i];
        moment_[i] += scaled * y[k];
        for (size_t j = 0; j < d; ++j) gram_[i * d + j] += scaled * row[j];
      }
    }
  }
  size_t dimension() const override { return moment_.size(); }
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors() const override {
    return {{"w", {static_cast<int64_t>(moment_.size())}}};
  }
  double weight() const override { return static_cast<double>(rows_); }
  bool loss_is_sum() const override { return true; }
  std::span<const double> hessian() const override { return gram_; }

  double Loss(std::span<const double> w) const override {  // ½wᵀGw − mᵀw + Σ weights·y²
    const size_t d = moment_.size();
    double sum = square_;
    for (size_t i = 0; i < d; ++i) {
      double product = 0;
      for (size_t j = 0; j < d; ++j) product += gram_[i * d + j] * w[j];
      sum += w[i] * (0.5 * product - moment_[i]);
    }
    return sum;
  }

  void Gradient(std::span<const double> w, std::span<const uint32_t>, std::span<double> out) const override {
    const size_t d = moment_.size();
    for (size_t i = 0; i < d; ++i) {
      const double* row = &gram_[i * d];
      double sum = -moment_[i];
      for (size_t j = 0; j < d; ++j) sum += row[j] * w[j];
      out[i] = sum;
    }
  }

  absl::Status Minimise(const ProximalTerm& term, ExactCache* cache, std::span<double> w) const override {
    return SolveShifted(gram_, term, cache, moment_, w, origin_);
  }

 private:
  const size_t rows_;
  std::vector<double> gram_;    // 2XᵀWX
  std::vector<double> moment_;  // 2XᵀWy
  double square_ = 0;           // yᵀWy
  const std::string origin_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeWls(const AnalyticParams&, ProblemTensors tensors, const std::string& origin) {
  TRIB_ASSIGN_OR_RETURN(const ProblemTensor x, TakeTensor(&tensors, "x", 2, origin));
  TRIB_ASSIGN_OR_RETURN(const ProblemTensor y, TakeTensor(&tensors, "y", 1, origin));
  TRIB_RETURN_IF_ERROR(CheckRows(x, y, "y", origin));
  std::vector<double> weights(y.values.size(), 1.0);
  if (tensors.contains("weights")) {
    TRIB_ASSIGN_OR_RETURN(ProblemTensor given, TakeTensor(&tensors, "weights", 1, origin));
    TRIB_RETURN_IF_ERROR(CheckRows(x, given, "weights", origin));
    for (size_t i = 0; i < given.values.size(); ++i) {
      if (given.values[i] < 0) return InvalidArgument("{}: tensor 'weights': element {} is {}, expected numbers >= 0", origin, i, given.values[i]);
    }
    weights = std::move(given.values);
  }
  TRIB_RETURN_IF_ERROR(NoTensorLeft(tensors, {"x", "y", "weights"}, origin));
  return std::make_shared<const Wls>(static_cast<size_t>(x.shape[1]), x.values, y.values, weights, origin);
}

}  // namespace tributary::client
