// Problems with a loss in closed form, one per client: what the platform's algorithms are tested against, through the real program.
// Each model is one file of this folder and one line of analytic.def; its client data are the tensors of one safetensors file.
//
// All numbers are fp64. w is the model's trainable elements in layout order, `dimension()` of them.
// Threads: immutable once made. Errors: INVALID_ARGUMENT naming the file, the tensor, expected and got.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/job_spec.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::client {

// One tensor of a client's file, converted.
struct ProblemTensor {
  std::vector<int64_t> shape;
  std::vector<double> values;
  bool integer = false;  // it was I64, I32 or U8
};
using ProblemTensors = std::map<std::string, ProblemTensor>;

// ⟨v,w⟩ + (μ/2)‖w − s‖², added to the loss by `solver: exact`. Empty v: 0; s is needed where μ > 0.
struct ProximalTerm {
  std::span<const double> v;
  double mu = 0;
  std::span<const double> s;
};

// What Minimise keeps between calls for one problem (a Cholesky factor): the caller's, one for each problem.
struct ExactCache {
  double mu = std::numeric_limits<double>::quiet_NaN();  // that `lower` is for
  std::vector<double> lower;
};

class AnalyticProblem {
 public:
  virtual ~AnalyticProblem() = default;
  virtual size_t dimension() const = 0;
  // The model's tensors in layout order, without dtype.
  virtual std::vector<std::pair<std::string, std::vector<int64_t>>> tensors() const = 0;
  // Where the file says the model starts; empty: it does not.
  virtual std::span<const double> init() const { return {}; }
  virtual double weight() const = 0;       // n_i
  // Rows that minibatches are drawn from; 0: every gradient is the full one.
  virtual size_t minibatch_rows() const { return 0; }
  // ∇²f, dimension() × dimension(), where it is the same everywhere; empty: it is not.
  virtual std::span<const double> hessian() const { return {}; }
  // Whether losses of several clients add up as they are (a sum over examples) instead of by weight (a mean).
  virtual bool loss_is_sum() const { return false; }

  virtual double Loss(std::span<const double> w) const = 0;
  // The loss gradient into `out`; over `rows` (their mean) where the problem has minibatches, of everything if empty.
  virtual void Gradient(std::span<const double> w, std::span<const uint32_t> rows, std::span<double> out) const = 0;
  // Share of examples whose class has the largest score; NaN where there are no classes.
  virtual double Accuracy(std::span<const double>) const { return std::numeric_limits<double>::quiet_NaN(); }
  // w becomes argmin of loss + term; on entry it is where iterations start. INVALID_ARGUMENT where no closed form or method exists or
  // the minimum is not unique.
  virtual absl::Status Minimise(const ProximalTerm& term, ExactCache* cache, std::span<double> w) const = 0;
};

// ---- the table ----

struct AnalyticEntry {
  std::string_view name;
  std::string_view help;
  std::string_view params;  // "name=default,…"
};
std::span<const AnalyticEntry> AnalyticModels();

// Whether the job's model is one of the table. `linear` is LibTorch's unless its data are one safetensors file per client.
bool IsAnalytic(const JobSpec& spec);

// The parameters of a job's analytic model, checked.
struct AnalyticParams {
  int64_t classes = 0;  // 0: not given
  double l2 = 1e-3;
};
absl::StatusOr<AnalyticParams> ReadAnalyticParams(const ModelSpec& model);

// The problem of one file. `origin` is its path, for messages; params.classes must be set where the model has classes.
absl::StatusOr<std::shared_ptr<const AnalyticProblem>> MakeAnalyticProblem(const std::string& zoo, const AnalyticParams& params,
                                                                           ProblemTensors tensors, const std::string& origin);

// ---- for the files of this folder ----

using AnalyticFactory = absl::StatusOr<std::shared_ptr<const AnalyticProblem>> (*)(const AnalyticParams& params, ProblemTensors tensors,
                                                                                   const std::string& origin);
// The tensor, with `rank` dimensions (any extent >= 1) and finite values.
absl::StatusOr<ProblemTensor> TakeTensor(ProblemTensors* tensors, const std::string& name, size_t rank, const std::string& origin);
// Everything of `tensors` must have been taken: a wrong name would otherwise be a silent default.
absl::Status NoTensorLeft(const ProblemTensors& tensors, const std::vector<std::string>& known, const std::string& origin);
// y must have one value a row of x.
absl::Status CheckRows(const ProblemTensor& x, const ProblemTensor& y, const std::string& name, const std::string& origin);
// Σ |·|² of the gradient of a term at w, added to `gradient`.
void AddProximalGradient(const ProximalTerm& term, std::span<const double> w, std::span<double> gradient);
// Solves (matrix + μI)·w = r into w, factorising once per μ. `matrix` is symmetric, d × d.
absl::Status SolveShifted(std::span<const double> matrix, const ProximalTerm& term, ExactCache* cache, std::span<const double> r,
                          std::span<double> w, const std::string& what);

}  // namespace tributary::client
