// Plain minibatch steps on a GPU at the GPU's pace: a step (forward, backward, update) is recorded for each size of minibatch and repeated
// (device_graph.h), the order of a whole task goes to the device at once, and losses come back once, at the end.
//
// The recordings belong to one model, whose operations do not depend on values (Model::repeatable), and serve all of its tasks. A step that
// cannot be recorded is launched as it is, and said so once. Results are those of the same steps launched one by one.
// Threads: thread-compatible, inside one StreamScope's stream. Borrows the model. May throw LibTorch's exceptions: Guarded().
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>

#include "client/torch/device_graph.h"
#include "client/torch/local/optimizer.h"
#include "client/torch/local/solver.h"

namespace tributary::client {

class RepeatedSteps {
 public:
  explicit RepeatedSteps(c10::Device device);
  // The whole of a plain run; errors as solver.h, but a loss that is not finite is seen when the run is over.
  absl::StatusOr<LocalOutcome> Run(const LocalRun& run, LocalOptimizer& optimizer);

 private:
  struct Key {
    int64_t batch = 0;
    std::string optimizer;  // its settings
    bool bf16 = false;
    auto operator<=>(const Key&) const = default;
  };
  struct Recorded {
    uint64_t uses = 0;
    Batch batch;        // the step's input
    at::Tensor loss;    // and its result, []
    std::unique_ptr<DeviceGraph> graph;
  };
  absl::Status Step(const LocalRun& run, Recorded& recorded, LocalOptimizer& optimizer);
  absl::Status Body(const LocalRun& run, Recorded& recorded, LocalOptimizer& optimizer);

  const c10::Device device_;
  const std::shared_ptr<GraphPool> pool_;
  at::Tensor lr_;       // [], of the task
  std::map<Key, Recorded> recorded_;
  bool refused_ = false;
};

}  // namespace tributary::client
