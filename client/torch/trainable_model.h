// A model whose tensors live in one flat buffer in layout order: loading a version is one copy, a solver's step a few operations on
// one long vector, an update one subtraction.
//
//   floats   [float_count]      trainable elements, then buffers, then what the server owns; every tensor of the model is a view into it
//   gradient [trainable_count]  likewise for the .grad of trainable tensors
//   counters [counter_count]    int64
// Threads: thread-compatible. May throw LibTorch's exceptions: call inside Guarded().
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/torch/model.h"
#include "common/large_bytes.h"
#include "common/job_spec.h"
#include "common/tensor_layout.h"

namespace tributary::client {

class TrainableModel {
 public:
  // From the zoo, or from `script_path` if the spec names a TorchScript file. Values are undefined for the zoo until Load().
  static absl::StatusOr<std::unique_ptr<TrainableModel>> Create(const ModelSpec& spec, DType dtype, const std::string& script_path,
                                                                at::Device device);

  // The same around a model that is made already, its tensors of type `dtype` on `device`.
  static absl::StatusOr<std::unique_ptr<TrainableModel>> Of(std::unique_ptr<Model> model, DType dtype, at::Device device);

  const TensorLayout& layout() const { return layout_; }
  Model& model() { return *model_; }
  at::Device device() const { return floats_.device(); }
  at::ScalarType scalar_type() const { return floats_.scalar_type(); }

  // Flat form, layout().total_bytes() (checked by the caller).
  void Load(std::span<const std::byte> flat);
  LargeBytes Values() const;
  // Flat form of the update since the last Load: trainable Δ = now − then, buffers and counters as they are now; nothing of what the server owns.
  LargeBytes Update() const;
  // The two parts of Update(): Δ on the device, and what follows it in the flat form.
  at::Tensor Delta() const;
  LargeBytes BuffersAndCounters() const;
  // Whether every float is finite.
  bool IsFinite() const;
  // The zoo's initial values; unchanged for TorchScript. Equal for equal seeds, whatever the machine.
  std::vector<std::byte> Initialise(uint64_t seed) const;

  // From now on nothing trains: no gradients and nothing to take a difference to are kept, and Load, Update and gradient() may not be called.
  void Freeze();

  at::Tensor& trainable() { return trainable_; }  // [trainable_count], a view
  at::Tensor& gradient() { return gradient_; }    // [trainable_count]
  at::Tensor buffers() { return floats_.narrow(0, trainable_.size(0), floats_.size(0) - trainable_.size(0)); }  // a view
  at::Tensor& counters() { return counters_; }
  // What outlives one task for an optimizer's state, in memory that stays: a vector of the gradient's size, zeroed; a number, [].
  at::Tensor Scratch(size_t index);
  at::Tensor ScratchNumber(size_t index);

 private:
  TrainableModel() = default;
  LargeBytes ToBytes(const at::Tensor& floats) const;  // and the counters

  std::unique_ptr<Model> model_;
  TensorLayout layout_;
  at::Tensor floats_, trainable_, gradient_, counters_, loaded_;
  std::vector<at::Tensor> scratch_, numbers_;
};

}  // namespace tributary::client
