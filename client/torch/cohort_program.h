// The local training of many clients of one chain model (chain.h) as one batched program: every parameter has a client dimension in front,
// dense layers are batched products, convolutions have a group a client. Forward, backward and the step are written out, layer by layer, so
// that a training step is a fixed row of operations; on a GPU it is recorded once and repeated (device_graph.h), up to 32 steps at a time.
//
//   params [C, P]   gradient [C, P]   velocity [C, P] with momentum      P: trainable elements in layout order
//   h       dense: [C, B, features]   images: [B, C·channels, height, width], channels last
//
// Each client's result is that of training it alone, but for the order in which sums are rounded.
// Source: the batching of models over clients as in FedJAX (Ro et al. 2021) and torch.func's ensembles; McMahan et al. 2017 for the step.
// Threads: thread-compatible; on a GPU inside one StreamScope's stream. Borrows the model. May throw LibTorch's exceptions: Guarded().
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/core/cohort_schedule.h"
#include "client/torch/device_graph.h"
#include "client/torch/example_store.h"
#include "client/torch/trainable_model.h"

namespace tributary::client {

struct CohortShape {
  int64_t clients = 0;  // at most so many, and examples a batch; fewer leave places empty
  int64_t batch = 0;
  bool regression = false;
  double momentum = 0;
  double weight_decay = 0;
  bool bf16 = false;    // activations and products in bfloat16; parameters, sums of losses and steps as the model has them
  bool operator==(const CohortShape&) const = default;
};

class CohortProgram {
 public:
  // Why clients of `model` cannot be trained side by side; "": they can.
  static std::string Obstacle(TrainableModel& model);
  // Of one client's part, parameters and what a step keeps.
  static int64_t BytesPerClient(TrainableModel& model, const CohortShape& shape);

  CohortProgram(TrainableModel& model, const CohortShape& shape);
  const CohortShape& shape() const { return shape_; }

  struct Result {
    at::Tensor updates;  // [n, P] on the device: trained − start. Valid until the next Run
    at::Tensor losses;   // [steps, C] double on the host: of each step at the values it met; 0 where a client made no step
    at::Tensor largest;  // [n] double on the host: max |Δ| of a client; not finite where its trained parameters are not
  };
  // Runs a whole schedule of n clients from `start`: [P], or [n, P] where clients begin from models of their own, places in the schedule's
  // order. `go_on(step)`: before each part of the run; false ends it there.
  Result Run(CohortSchedule& schedule, const at::Tensor& start, const ExampleTensors& examples, const std::function<bool(uint64_t)>& go_on);

 private:
  // A layer with its tensors' places in the flat vector.
  struct Layer {
    ChainLayer::Kind kind;
    int64_t padding = 0;
    std::vector<int64_t> weight_shape;
    int64_t weight_at = 0, bias_at = 0;
  };
  // What the backward pass of a layer needs.
  struct Kept {
    at::Tensor input, output, weight, indices;
  };
  struct Recorded {
    uint64_t uses = 0;
    std::unique_ptr<DeviceGraph> graph;
  };

  void Part(uint64_t steps, int64_t width, const ExampleTensors& examples);
  void Steps(uint64_t steps, int64_t width, const ExampleTensors& examples);
  void Step(int64_t step, int64_t width, const ExampleTensors& examples);
  at::Tensor Arranged(const at::Tensor& x, int64_t width) const;
  at::Tensor Forward(const Layer& layer, const at::Tensor& h, int64_t width, Kept* kept) const;
  // Writes the layer's part of the gradient; the gradient at its input, if anybody wants that.
  at::Tensor Backward(const Layer& layer, const at::Tensor& g, int64_t width, const Kept& kept, bool wants_input);
  at::Tensor View(const at::Tensor& flat, int64_t at, int64_t width, const std::vector<int64_t>& shape) const;
  at::Tensor Cast(const at::Tensor& tensor) const;

  const CohortShape shape_;
  std::vector<int64_t> input_shape_;
  std::vector<Layer> layers_;
  at::ScalarType type_, compute_;
  at::Device device_;
  at::Tensor params_, gradient_, velocity_;
  at::Tensor rows_, shares_, rates_, losses_;  // of one part: [32, C, B], [32, C, B], [32, C], [32, C]
  std::shared_ptr<GraphPool> pool_;
  std::map<std::pair<uint64_t, int64_t>, Recorded> recorded_;  // by steps and width
  const void* recorded_for_ = nullptr;                         // the examples whose memory the graphs read
};

}  // namespace tributary::client
