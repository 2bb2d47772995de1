// Trains and evaluates the analytic models (analytic/problem.h) in fp64, without LibTorch: `solver: sgd` with the fused local step of
// local_step.h, `solver: exact` with the problems' own minimisers. Results are equal for equal inputs on every machine, up to libm's
// exp and log in classifiers and in gradient noise.
// The client's problem comes in Dataset::problems; models of dtype float32 are widened on receipt and rounded when the update is made.
// Threads: as Learner says. Errors beyond Learner's: INTERNAL where the iterate leaves the finite numbers (the rate is too high).
#pragma once

#include <memory>
#include <unordered_map>

#include "client/core/analytic/problem.h"
#include "client/core/learner.h"
#include "client/core/local_rule.h"
#include "common/safetensors.h"

namespace tributary::client {

class AnalyticLearner final : public Learner {
 public:
  std::string device() const override { return "cpu"; }
  absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset* data) override;
  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest& request, const Dataset* data) override;

 private:
  struct Cached {
    std::shared_ptr<const AnalyticProblem> problem;  // kept, so that its address stays its own
    ExactCache exact;
  };
  absl::StatusOr<LocalOutcomeVectors> RunPlan(const TrainRequest& request, const LocalSpec& local,
                                              const std::shared_ptr<const AnalyticProblem>& problem, const LocalPlan& plan, uint64_t* steps);
  // `solver: eggroll`: every member's loss over all of the client's rows.
  absl::StatusOr<TrainResult> TrainPopulation(const TrainRequest& request, const AnalyticProblem& problem);
  // The number of steps made; outcome->y comes in as y⁰.
  absl::StatusOr<uint64_t> RunSgd(const TrainRequest& request, const LocalSpec& local, const AnalyticProblem& problem, const LocalPlan& plan,
                                  LocalOutcomeVectors* outcome);

  std::unordered_map<const AnalyticProblem*, Cached> exact_;
  // Scratch of one task, kept because tasks are short: the received model, two gradients, the velocity.
  std::vector<double> x_, gradient_, before_, velocity_;
};

// Analytic jobs go to an AnalyticLearner, all others to `other`; without one they are refused with `why`.
std::unique_ptr<Learner> WithAnalyticModels(std::unique_ptr<Learner> other, absl::Status why);

// The model that an analytic job starts from, in the job's dtype: the problems' own start, or zero.
absl::StatusOr<FlatModel> AnalyticInitialModel(DType dtype, std::span<const std::shared_ptr<const AnalyticProblem>> problems);

}  // namespace tributary::client
