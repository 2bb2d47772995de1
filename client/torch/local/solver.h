// A local solver: what a client does with the model between receiving it and returning its update. Each is one file in this folder
// and one line in solvers.def.
// Contract of every solver: the model's values on return are its result; zero steps change nothing; equal inputs and seeds give equal
// bits on one CPU; `progress` is called after each minibatch and stops it (CANCELLED) when it returns false; a loss that is not
// finite ends it with INTERNAL naming the step.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "client/core/eggroll_fitness.h"
#include "client/torch/batches.h"
#include "client/torch/local/correction.h"
#include "client/torch/trainable_model.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

class RepeatedSteps;  // repeated_steps.h

struct LocalRun {
  TrainableModel& model;
  const Batches& data;
  const LocalSpec& spec;
  const Correction& correction;
  uint64_t seed = 0;  // of the minibatch order
  const std::function<bool(float)>& progress;
  RepeatedSteps* repeated = nullptr;  // on a GPU: steps of this model that were recorded; null: none are
  int64_t pieces = 1;                 // a minibatch's gradient is summed over so many parts of it, for want of memory
  const EggrollPopulation* population = nullptr;  // of a strategy that has one
};

struct LocalOutcome {
  double train_loss = 0;  // mean over all examples processed, each at the values it met
  int64_t steps = 0;
  at::Tensor mean_gradient;  // raw, over the steps; undefined unless the correction wants it
  std::vector<double> fitness{};  // of the population's members, in place of any step; empty: the solver trained
};

// May throw LibTorch's exceptions: call it inside Guarded().
using LocalSolver = absl::StatusOr<LocalOutcome> (*)(const LocalRun& run);

inline bool UsesBf16(const LocalSpec& spec) { return spec.precision == "bf16"; }

// What every solver refuses, and how it says that training has left the numbers.
absl::Status CheckLocalSpec(const LocalSpec& spec);
absl::Status LossNotFinite(double loss, uint64_t step, uint64_t steps, const LocalSpec& spec);
absl::Status WeightNotFinite(int64_t steps, const LocalSpec& spec);

// NOT_FOUND with the known ones.
absl::StatusOr<LocalSolver> FindLocalSolver(const std::string& name);

}  // namespace tributary::client
