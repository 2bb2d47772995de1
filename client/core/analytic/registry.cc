#include <absl/strings/numbers.h>

#include <cmath>

#include "client/core/analytic/problem.h"
#include "client/core/cholesky.h"
#include "common/suggest.h"

namespace tributary::client {

#define TRIB_ANALYTIC(name, factory, help, params) \
  absl::StatusOr<std::shared_ptr<const AnalyticProblem>> factory(const AnalyticParams&, ProblemTensors, const std::string&);
#include "client/core/analytic/analytic.def"
#undef TRIB_ANALYTIC

namespace {

constexpr AnalyticEntry kEntries[] = {
#define TRIB_ANALYTIC(name, factory, help, params) {#name, help, params},
#include "client/core/analytic/analytic.def"
#undef TRIB_ANALYTIC
};

constexpr AnalyticFactory kFactories[] = {
#define TRIB_ANALYTIC(name, factory, help, params) factory,
#include "client/core/analytic/analytic.def"
#undef TRIB_ANALYTIC
};

constexpr int64_t kMaxClasses = 100'000;

}  // namespace

std::span<const AnalyticEntry> AnalyticModels() { return kEntries; }

bool IsAnalytic(const JobSpec& spec) {
  if (spec.model.zoo == "linear") return spec.data.source == "safetensors" && spec.data.partition.kind == "by_file";
  for (const AnalyticEntry& entry : kEntries) {
    if (entry.name == spec.model.zoo) return true;
  }
  return false;
}

absl::StatusOr<AnalyticParams> ReadAnalyticParams(const ModelSpec& model) {
  AnalyticParams params;
  std::vector<std::string> known;
  if (model.zoo == "linear" || model.zoo == "softmax") known.emplace_back("classes");
  if (model.zoo == "softmax") known.emplace_back("l2");
  for (const auto& [name, value] : model.params) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return InvalidArgument("model '{}' has no parameter '{}'{}", model.zoo, name, DidYouMean(name, known));
    }
    if (name == "classes" && !(absl::SimpleAtoi(value, &params.classes) && params.classes >= 2 && params.classes <= kMaxClasses)) {
      return InvalidArgument("model '{}': classes: expected an integer from 2 to {}, got '{}'", model.zoo, kMaxClasses, value);
    }
    if (name == "l2" && !(absl::SimpleAtod(value, &params.l2) && std::isfinite(params.l2) && params.l2 >= 0)) {
      return InvalidArgument("model '{}': l2: expected a number >= 0, got '{}'", model.zoo, value);
    }
  }
  return params;
}

absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeAnalyticProblem(const std::string& zoo, const AnalyticParams& params,
                                                                           ProblemTensors tensors, const std::string& origin) {
  for (size_t i = 0; i < std::size(kEntries); ++i) {
    if (kEntries[i].name == zoo) return kFactories[i](params, std::move(tensors), origin);
  }
  return NotFound("no analytic model '{}'", zoo);
}

absl::StatusOr<ProblemTensor> TakeTensor(ProblemTensors* tensors, const std::string& name, size_t rank, const std::string& origin) {
  const auto at = tensors->find(name);
  if (at == tensors->end()) return InvalidArgument("{}: no tensor '{}'", origin, name);
  ProblemTensor tensor = std::move(at->second);
  tensors->erase(at);
  if (tensor.shape.size() != rank || tensor.values.empty()) {
    return InvalidArgument("{}: tensor '{}': expected {} dimensions with at least one element, got shape [{}]", origin, name, rank,
                           fmt::format("{}", fmt::join(tensor.shape, ", ")));
  }
  for (size_t i = 0; i < tensor.values.size(); ++i) {
    if (!std::isfinite(tensor.values[i])) return InvalidArgument("{}: tensor '{}': element {} is not finite", origin, name, i);
  }
  return tensor;
}

absl::Status NoTensorLeft(const ProblemTensors& tensors, const std::vector<std::string>& known, const std::string& origin) {
  if (tensors.empty()) return absl::OkStatus();
  const std::string& name = tensors.begin()->first;
  return InvalidArgument("{}: tensor '{}' means nothing here{}; known: {}", origin, name, DidYouMean(name, known),
                         fmt::format("{}", fmt::join(known, ", ")));
}

absl::Status CheckRows(const ProblemTensor& x, const ProblemTensor& y, const std::string& name, const std::string& origin) {
  if (y.shape[0] == x.shape[0]) return absl::OkStatus();
  return InvalidArgument("{}: tensor '{}': expected shape [{}] as x has {} rows, got [{}]", origin, name, x.shape[0], x.shape[0], y.shape[0]);
}

void AddProximalGradient(const ProximalTerm& term, std::span<const double> w, std::span<double> gradient) {
  for (size_t i = 0; i < w.size(); ++i) {
    if (!term.v.empty()) gradient[i] += term.v[i];
    if (term.mu != 0) gradient[i] += term.mu * (w[i] - term.s[i]);
  }
}

absl::Status SolveShifted(std::span<const double> matrix, const ProximalTerm& term, ExactCache* cache, std::span<const double> r,
                          std::span<double> w, const std::string& what) {
  const size_t d = w.size();
  if (cache->mu != term.mu || cache->lower.empty()) {
    cache->lower.assign(matrix.begin(), matrix.end());
    for (size_t i = 0; i < d; ++i) cache->lower[i * d + i] += term.mu;
    if (!CholeskyFactor(cache->lower, d)) {
      cache->lower.clear();
      return InvalidArgument("{}: solver exact: the minimum is not unique: the loss is not strictly convex{}", what,
                             term.mu == 0 ? "; a strategy with a proximal term would make it so" : "");
    }
    cache->mu = term.mu;
  }
  for (size_t i = 0; i < d; ++i) {
    w[i] = r[i] + (term.mu != 0 ? term.mu * term.s[i] : 0) - (term.v.empty() ? 0 : term.v[i]);
  }
  CholeskySolve(cache->lower, d, w);
  return absl::OkStatus();
}

}  // namespace tributary::client
