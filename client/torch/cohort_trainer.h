// Tasks of many clients of one job, trained side by side (cohort_program.h) where their model and strategy allow it: from TrainRequests to
// TrainResults that are those of one task after the other.
// Threads: thread-compatible. Keeps the program of the last model and shape. May throw LibTorch's exceptions: Guarded().
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/core/learner.h"
#include "client/torch/cohort_program.h"
#include "client/torch/example_store.h"
#include "client/torch/trainable_model.h"

namespace tributary::client {

class CohortTrainer {
 public:
  // Why these members are to be trained one after the other; "": they need not be.
  static std::string Obstacle(TrainableModel& model, std::span<const CohortMember> members);

  // `model` is the members' model, whose values it changes; there is no Obstacle.
  std::vector<absl::StatusOr<TrainResult>> Train(TrainableModel& model, ExampleStore& store, std::span<const CohortMember> members);
  // Before `model` goes.
  void Forget() { program_.reset(); }

 private:
  struct Able {
    size_t member = 0;
    CohortClient client;
  };
  void TrainGroup(TrainableModel& model, const ExampleTensors& examples, CohortShape shape, std::span<const CohortMember> members, std::span<const Able> group,
                  std::vector<absl::StatusOr<TrainResult>>* results);

  const TrainableModel* model_ = nullptr;
  std::unique_ptr<CohortProgram> program_;
};

}  // namespace tributary::client
