// f(x) = ½ (x−b)ᵀA(x−b), ∇f(x) = A(x−b), for a symmetric A; its exact proximal step solves (A + μI) w = Ab − v + μs.
#include <cmath>

#include "client/core/analytic/problem.h"

namespace tributary::client {
namespace {

class Quadratic final : public AnalyticProblem {
 public:
  Quadratic(std::vector<double> a, std::vector<double> b, double weight, std::vector<double> init, std::string origin)
      : a_(std::move(a)), b_(std::move(b)), weight_(weight), init_(std::move(init)), origin_(std::move(origin)) {}
  size_t dimension() const override { return b_.size(); }
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors() const override {
    return {{"x", {static_cast<int64_t>(b_.size())}}};
  }
  std::span<const double> init() const override { return init_; }
  double weight() const override { return weight_; }
  std::span<const double> hessian() const override { return a_; }

  double Loss(std::span<const double> w) const override {
    std::vector<double> gradient(b_.size());
    Gradient(w, {}, gradient);
    double sum = 0;
    for (size_t i = 0; i < b_.size(); ++i) sum += (w[i] - b_[i]) * gradient[i];
    return 0.5 * sum;
  }

  void Gradient(std::span<const double> w, std::span<const uint32_t>, std::span<double> out) const override {
    const size_t d = b_.size();
    for (size_t i = 0; i < d; ++i) {
      const double* row = &a_[i * d];
      double sum = 0;
      for (size_t j = 0; j < d; ++j) sum += row[j] * (w[j] - b_[j]);
      out[i] = sum;
    }
  }

  absl::Status Minimise(const ProximalTerm& term, ExactCache* cache, std::span<double> w) const override {
    const size_t d = b_.size();
    std::vector<double> r(d, 0.0);
    for (size_t i = 0; i < d; ++i) {
      for (size_t j = 0; j < d; ++j) r[i] += a_[i * d + j] * b_[j];
    }
    return SolveShifted(a_, term, cache, r, w, origin_);
  }

 private:
  const std::vector<double> a_, b_;
  const double weight_;
  const std::vector<double> init_;
  const std::string origin_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeQuadratic(const AnalyticParams&, ProblemTensors tensors, const std::string& origin) {
  TRIB_ASSIGN_OR_RETURN(ProblemTensor a, TakeTensor(&tensors, "A", 2, origin));
  TRIB_ASSIGN_OR_RETURN(ProblemTensor b, TakeTensor(&tensors, "b", 1, origin));
  const int64_t d = b.shape[0];
  if (a.shape[0] != d || a.shape[1] != d) {
    return InvalidArgument("{}: tensor 'A': expected shape [{}, {}] as b has {} elements, got [{}, {}]", origin, d, d, d, a.shape[0], a.shape[1]);
  }
  double largest = 0;
  for (const double value : a.values) largest = std::fmax(largest, std::fabs(value));
  const size_t n = static_cast<size_t>(d);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < i; ++j) {
      const double low = a.values[i * n + j], high = a.values[j * n + i];
      if (std::fabs(low - high) > 1e-6 * largest) {  // files in f32 are symmetric to their own precision
        return InvalidArgument("{}: tensor 'A': expected a symmetric matrix, got A[{},{}] = {} and A[{},{}] = {}", origin, i, j, low, j, i, high);
      }
    }
  }
  double weight = 1;
  if (const auto at = tensors.find("weight"); at != tensors.end()) {
    if (at->second.values.size() != 1 || !std::isfinite(at->second.values[0]) || at->second.values[0] <= 0) {
      return InvalidArgument("{}: tensor 'weight': expected one number > 0", origin);
    }
    weight = at->second.values[0];
    tensors.erase(at);
  }
  std::vector<double> init;
  if (tensors.contains("init")) {
    TRIB_ASSIGN_OR_RETURN(ProblemTensor given, TakeTensor(&tensors, "init", 1, origin));
    if (given.shape[0] != d) return InvalidArgument("{}: tensor 'init': expected {} elements, got {}", origin, d, given.shape[0]);
    init = std::move(given.values);
  }
  TRIB_RETURN_IF_ERROR(NoTensorLeft(tensors, {"A", "b", "weight", "init"}, origin));
  return std::make_shared<const Quadratic>(std::move(a.values), std::move(b.values), weight, std::move(init), origin);
}

}  // namespace tributary::client
