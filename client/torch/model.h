// What a learner can train: named tensors and a forward pass. Two kinds exist: the zoo's (models/, written with ATen calls) and user
// modules as TorchScript (torchscript.h).
//
// x is [B, …input_shape]; Forward gives [B, outputs]: logits for classes, one column for regression; or what next_token says. Tensors are created on the
// device and in the type they are trained in; TrainableModel then moves their storage into one flat buffer, the handles stay.
// Threads: thread-compatible. Errors: exceptions of LibTorch, caught by callers with Guarded().
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/moe_stats.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::client {

// How a zoo tensor begins. Drawn by InitialModel from the job's seed with our own generator, so that equal seeds give equal models on
// every machine and under every LibTorch.
struct Init {
  enum class Kind { kConstant, kUniform, kNormal };
  Kind kind = Kind::kConstant;
  double value = 0;  // the constant, the bound of U(-v, v), or the deviation of N(0, v²)
  static Init Constant(double v) { return {Kind::kConstant, v}; }
  static Init Uniform(double bound) { return {Kind::kUniform, bound}; }
  static Init Normal(double deviation) { return {Kind::kNormal, deviation}; }
};

struct ModelTensor {
  std::string name;  // as torch's state_dict would have it
  TensorKind kind = TensorKind::kTrainable;
  at::Tensor value;
  Init init;         // zoo only; a TorchScript module brings its values
};

// One layer of a model that is a row of them. A convolution has stride 1, pooling is 2x2 with stride 2, a dense layer takes its input flattened.
struct ChainLayer {
  enum class Kind { kConv, kDense, kRelu, kMaxPool };
  Kind kind = Kind::kRelu;
  std::string name{};   // of its tensors: name.weight, name.bias
  int64_t padding = 0;  // of a convolution
};

class Model {
 public:
  virtual ~Model() = default;
  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  virtual at::Tensor Forward(const at::Tensor& x, bool training) = 0;
  // Extents of one example; empty: whatever comes (TorchScript).
  virtual std::vector<int64_t> input_shape() const = 0;
  // Columns of Forward's result; 0: unknown before it has run (TorchScript).
  virtual int64_t outputs() const = 0;
  // Whether Forward gives [B, T, outputs], the logits of each position's next element of x: a language model, trained on x alone.
  virtual bool next_token() const { return false; }
  // What training adds to the loss of the last Forward; undefined: nothing.
  virtual at::Tensor AuxiliaryLoss() const { return {}; }
  // The layers of a model that is a row of them (chain.h); empty: it is not, and clients train one after the other.
  virtual std::span<const ChainLayer> chain() const { return {}; }
  // Whether a training step does the same operations whatever the values are, so that a GPU may repeat what it did before (device_graph.h).
  virtual bool repeatable() const { return false; }
  // Around a task's steps: after its values have been loaded; after each step of the optimiser.
  virtual void BeginTask() {}
  virtual void EndStep() {}
  // Of the task's steps, for its statistics.
  virtual std::map<std::string, double> Metrics() const { return {}; }
  // Of a mixture of experts: its layers' loads in the task so far; and the load of all clients, after BeginTask. INVALID_ARGUMENT: of other layers.
  virtual MoeStats Statistics() { return {}; }
  virtual absl::Status TakeLoad(const GlobalMoe&) { return absl::OkStatus(); }
  const std::vector<ModelTensor>& tensors() const { return tensors_; }

 protected:
  std::vector<ModelTensor> tensors_;
};

// A layer x·Wᵀ + b beside which an adapter can stand.
struct LinearLayer {
  std::string name;   // of its weight, without ".weight"
  at::Tensor weight;  // [out, in]
};

// Base of the zoo's models: fixed shapes, tensors made through Add*.
class ZooModel : public Model {
 public:
  ZooModel(std::vector<int64_t> input_shape, int64_t outputs, at::TensorOptions options)
      : input_shape_(std::move(input_shape)), outputs_(outputs), options_(options) {}
  std::vector<int64_t> input_shape() const override { return input_shape_; }
  int64_t outputs() const override { return outputs_; }
  // Those that Forward takes through Project, in order.
  const std::vector<LinearLayer>& linear_layers() const { return linear_layers_; }
  // From now on the layer's result is what it was, plus what `beside` gives for the same x.
  using Beside = std::function<at::Tensor(const at::Tensor& x)>;
  void Attach(const LinearLayer& layer, Beside beside) { beside_[layer.weight.unsafeGetTensorImpl()] = std::move(beside); }

 protected:
  struct Affine {
    at::Tensor weight, bias;
  };
  struct Norm {
    at::Tensor weight, bias, mean, variance, batches;
  };
  at::Tensor Add(std::string name, std::vector<int64_t> shape, Init init, TensorKind kind = TensorKind::kTrainable);
  // Of a weight [out, in] that Forward takes through Project.
  void AddLinearLayer(const std::string& name, const at::Tensor& weight) { linear_layers_.push_back({name, weight}); }
  // x·weightᵀ + bias of such a layer, with what stands beside it.
  at::Tensor Project(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) const;
  // torch.nn.Linear (one for Project) and torch.nn.Conv2d with their default initialisation U(±1/√fan_in) of weight and bias.
  Affine AddLinear(const std::string& name, int64_t in, int64_t out);
  Affine AddConv(const std::string& name, int64_t in, int64_t out, int64_t kernel);
  // torch.nn.BatchNorm2d: weight 1, bias 0, running_mean 0, running_var 1, num_batches_tracked 0.
  Norm AddBatchNorm(const std::string& name, int64_t channels);
  // Updates the running statistics when training (momentum 0.1, eps 1e-5: torch's defaults).
  static at::Tensor ApplyBatchNorm(Norm& norm, const at::Tensor& x, bool training);

 private:
  std::vector<int64_t> input_shape_;
  int64_t outputs_;
  at::TensorOptions options_;
  std::vector<LinearLayer> linear_layers_;
  std::unordered_map<const void*, Beside> beside_;  // by the layer's weight
};

int64_t ElementsOf(std::span<const int64_t> shape);

}  // namespace tributary::client
