// A local solver: what a client does with the model between receiving it and returning its update. Each is one file in this folder
// and one line in solvers.def.
// Contract of every solver: the model's values on return are its result; zero steps change nothing; equal inputs and seeds give equal
// bits on one CPU; `progress` is called after each minibatch and stops it (CANCELLED) when it returns false; a loss that is not
// finite ends it with INTERNAL naming the step.
#pragma once

#include <cstdint>
#include <functional>

#include "client/torch/batches.h"
#include "client/torch/local/correction.h"
#include "client/torch/trainable_model.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

struct LocalRun {
  TrainableModel& model;
  const Batches& data;
  const LocalSpec& spec;
  const Correction& correction;
  uint64_t seed = 0;  // of the minibatch order
  const std::function<bool(float)>& progress;
};

struct LocalOutcome {
  double train_loss = 0;  // mean over all examples processed, each at the values it met
  int64_t steps = 0;
  at::Tensor mean_gradient;  // raw, over the steps; undefined unless the correction wants it
};

// May throw LibTorch's exceptions: call it inside Guarded().
using LocalSolver = absl::StatusOr<LocalOutcome> (*)(const LocalRun& run);

// NOT_FOUND with the known ones.
absl::StatusOr<LocalSolver> FindLocalSolver(const std::string& name);

}  // namespace tributary::client
