#include <cmath>

#include "client/core/classifier.h"
#include "client/core/cholesky.h"

namespace tributary::client {
namespace {

constexpr double kGradientNorm = 1e-12;
constexpr int kMaxNewton = 200;

double Norm(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

// w: classes × features row-major, then `classes` biases if there are any.
class Classifier final : public AnalyticProblem {
 public:
  Classifier(const ClassifierOptions& options, size_t features, std::vector<double> x, std::vector<uint32_t> y)
      : options_(options), classes_(static_cast<size_t>(options.classes)), features_(features), x_(std::move(x)), y_(std::move(y)) {}
  size_t dimension() const override { return classes_ * features_ + (options_.bias ? classes_ : 0); }
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors() const override {
    std::vector<std::pair<std::string, std::vector<int64_t>>> list = {{"weight", {options_.classes, static_cast<int64_t>(features_)}}};
    if (options_.bias) list.push_back({"bias", {options_.classes}});
    return list;
  }
  double weight() const override { return static_cast<double>(y_.size()); }
  size_t minibatch_rows() const override { return y_.size(); }

  double Loss(std::span<const double> w) const override {
    std::vector<double> probabilities(classes_);
    double sum = 0;
    for (size_t row = 0; row < y_.size(); ++row) sum += Softmax(w, row, probabilities);
    return sum / static_cast<double>(y_.size()) + 0.5 * options_.l2 * SquaredWeights(w);
  }

  double Accuracy(std::span<const double> w) const override {
    std::vector<double> probabilities(classes_);
    size_t right = 0;
    for (size_t row = 0; row < y_.size(); ++row) {
      Softmax(w, row, probabilities);
      right += std::max_element(probabilities.begin(), probabilities.end()) - probabilities.begin() == static_cast<ptrdiff_t>(y_[row]);
    }
    return static_cast<double>(right) / static_cast<double>(y_.size());
  }

  void Gradient(std::span<const double> w, std::span<const uint32_t> rows, std::span<double> out) const override {
    std::vector<double> probabilities(classes_);
    std::fill(out.begin(), out.end(), 0.0);
    const size_t count = rows.empty() ? y_.size() : rows.size();
    for (size_t k = 0; k < count; ++k) {
      const size_t row = rows.empty() ? k : rows[k];
      Softmax(w, row, probabilities);
      probabilities[y_[row]] -= 1;
      const double* x = &x_[row * features_];
      for (size_t c = 0; c < classes_; ++c) {
        const double error = probabilities[c] / static_cast<double>(count);
        double* to = &out[c * features_];
        for (size_t j = 0; j < features_; ++j) to[j] += error * x[j];
        if (options_.bias) out[classes_ * features_ + c] += error;
      }
    }
    if (options_.l2 == 0) return;
    for (size_t i = 0; i < classes_ * features_; ++i) out[i] += options_.l2 * w[i];
  }

  // Newton's method with halved steps until the gradient falls; the last steps are whole and converge quadratically.
  absl::Status Minimise(const ProximalTerm& term, ExactCache*, std::span<double> w) const override {
    if (options_.bias) return NoExactLinear();
    const size_t d = dimension();
    std::vector<double> gradient(d), step(d), hessian(d * d), next(d), next_gradient(d);
    const auto gradient_at = [&](std::span<const double> at, std::span<double> out) {
      Gradient(at, {}, out);
      AddProximalGradient(term, at, out);
    };
    gradient_at(w, gradient);
    double norm = Norm(gradient);
    for (int iteration = 0; iteration < kMaxNewton && norm > kGradientNorm; ++iteration) {
      Hessian(w, term.mu, hessian);
      if (!CholeskyFactor(hessian, d)) {
        return InvalidArgument("{}: solver exact: the minimum is not unique: softmax regression needs l2 > 0 or a proximal term", options_.origin);
      }
      std::copy(gradient.begin(), gradient.end(), step.begin());
      CholeskySolve(hessian, d, step);
      double scale = 1;
      bool better = false;
      for (int halving = 0; halving < 60 && !better; ++halving, scale *= 0.5) {
        for (size_t i = 0; i < d; ++i) next[i] = w[i] - scale * step[i];
        gradient_at(next, next_gradient);
        better = Norm(next_gradient) < norm;
      }
      if (!better) break;  // the gradient is rounding
      std::copy(next.begin(), next.end(), w.begin());
      gradient.swap(next_gradient);
      norm = Norm(gradient);
    }
    if (norm > 1e3 * kGradientNorm) {
      return Internal("{}: solver exact: Newton's method ends with a gradient of norm {}, expected at most {}", options_.origin, norm, kGradientNorm);
    }
    return absl::OkStatus();
  }

 private:
  // Probabilities of the classes at a row; returns its cross-entropy.
  double Softmax(std::span<const double> w, size_t row, std::span<double> probabilities) const {
    const double* x = &x_[row * features_];
    double largest = -std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < classes_; ++c) {
      double score = options_.bias ? w[classes_ * features_ + c] : 0;
      const double* weights = &w[c * features_];
      for (size_t j = 0; j < features_; ++j) score += weights[j] * x[j];
      probabilities[c] = score;
      largest = std::max(largest, score);
    }
    const double own = probabilities[y_[row]];
    double sum = 0;
    for (double& p : probabilities) sum += p = std::exp(p - largest);
    for (double& p : probabilities) p /= sum;
    return largest + std::log(sum) - own;
  }

  double SquaredWeights(std::span<const double> w) const {
    double sum = 0;
    for (size_t i = 0; i < classes_ * features_; ++i) sum += w[i] * w[i];
    return sum;
  }

  void Hessian(std::span<const double> w, double mu, std::span<double> out) const {
    const size_t d = classes_ * features_;
    std::vector<double> p(classes_);
    std::fill(out.begin(), out.end(), 0.0);
    for (size_t row = 0; row < y_.size(); ++row) {
      Softmax(w, row, p);
      const double* x = &x_[row * features_];
      for (size_t c = 0; c < classes_; ++c) {
        for (size_t e = 0; e <= c; ++e) {
          const double factor = (c == e ? p[c] - p[c] * p[c] : -p[c] * p[e]) / static_cast<double>(y_.size());
          for (size_t i = 0; i < features_; ++i) {
            double* to = &out[(c * features_ + i) * d + e * features_];
            for (size_t j = 0; j < features_; ++j) to[j] += factor * x[i] * x[j];
          }
        }
      }
    }
    for (size_t i = 0; i < d; ++i) out[i * d + i] += options_.l2 + mu;
  }

  const ClassifierOptions options_;
  const size_t classes_;
  const size_t features_;
  const std::vector<double> x_;
  const std::vector<uint32_t> y_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeClassifier(const ClassifierOptions& options, ProblemTensor x, const ProblemTensor& y) {
  std::vector<uint32_t> labels;
  for (size_t i = 0; i < y.values.size(); ++i) {
    const double label = y.values[i];
    if (label < 0 || label >= static_cast<double>(options.classes)) {
      return InvalidArgument("{}: tensor 'y': element {} is class {}, expected 0 to {}", options.origin, i, label, options.classes - 1);
    }
    labels.push_back(static_cast<uint32_t>(label));
  }
  return std::make_shared<const Classifier>(options, static_cast<size_t>(x.shape[1]), std::move(x.values), std::move(labels));
}

}  // namespace tributary::client
