// The LibTorch learner: trains zoo models and TorchScript modules on the CPU or one CUDA device. No torch type is visible here.
//
// Results on the CPU are equal for equal (model, data, seed, thread count) on one machine. One Learner serves all identities of a
// daemon: it keeps the last model it was asked for, with its gradients and optimiser state, and only loads new values into it. On a GPU it
// works on a stream of its own, repeats recorded steps (repeated_steps.h) and trains cohorts side by side (cohort_trainer.h). A task for which
// the device's memory is too small is tried once more with its minibatches in two parts.
// Threads: as Learner says (one call at a time). The thread count is LibTorch's, hence one for the whole process. LibTorch's OpenMP
// threads spin while they wait: where several processes share the cores, more than one thread each can be 20 times slower than one
// each; start such processes with threads 1, or with OMP_WAIT_POLICY=passive in their environment.
// Errors beyond Learner's: FAILED_PRECONDITION (device cuda where there is none), INTERNAL (an exception of LibTorch).
#pragma once

#include <memory>
#include <span>
#include <string>

#include "client/core/learner.h"
#include "common/job_spec.h"
#include "common/safetensors.h"

namespace tributary::client {

struct TorchLearnerOptions {
  std::string device = "auto";  // auto (CUDA if there is one) | cpu | cuda | cuda:N
  int threads = 0;              // of one operation; 0: one for each processor core this process may use
  size_t cohort = 0;            // clients to train side by side; 0: many on a GPU, 1 on the CPU, where it is no faster
};

absl::StatusOr<std::unique_ptr<Learner>> MakeTorchLearner(const TorchLearnerOptions& options);

// The model a job starts from: spec.model.init's values if named, else TorchScript's own, else the zoo's initialisation from
// spec.seed (equal seeds give equal bytes). NOT_FOUND: unknown zoo name or missing file.
absl::StatusOr<FlatModel> InitialModel(const JobSpec& spec);

struct ZooEntry {
  const char* name;
  const char* help;      // what it is, with its source
  const char* defaults;  // "parameter=default,…"
};
std::span<const ZooEntry> ModelZoo();

struct LocalSolverEntry {
  const char* name;
  const char* help;
};
std::span<const LocalSolverEntry> LocalSolvers();

}  // namespace tributary::client
