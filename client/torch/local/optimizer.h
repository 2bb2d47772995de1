// What a local solver makes of a gradient. Its state (velocity, moments) begins at 0 in each task: a client may be asked once, and a version is all it gets.
// Threads: thread-compatible. May throw LibTorch's exceptions: Guarded(). Calls inside NoGradGuard.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "client/torch/trainable_model.h"

namespace tributary::client {

class LocalOptimizer {
 public:
  virtual ~LocalOptimizer() = default;
  // Of this model, whose Scratch vectors it takes: the same memory in each task, so that steps which a GPU has recorded find it.
  virtual void Begin(TrainableModel& model) = 0;
  // One step of `weights`; may change `gradient`. `rate`: [] on the device, in place of the job's rate, of steps that are recorded; or undefined. Reads no value.
  virtual void Step(at::Tensor& weights, at::Tensor& gradient, const at::Tensor& rate) = 0;
  // What a recorded step has in it beside its minibatch and rate.
  virtual std::string Settings() const = 0;

 protected:
  // weights − rate·direction, or lr in place of a rate that is undefined.
  static void Descend(at::Tensor& weights, const at::Tensor& direction, const at::Tensor& rate, double lr) {
    if (rate.defined()) {
      weights.addcmul_(direction, rate, -1);
    } else {
      weights.sub_(direction, lr);
    }
  }
};

}  // namespace tributary::client
