#include "client/torch/model.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <cmath>
#include <utility>

namespace tributary::client {

int64_t ElementsOf(std::span<const int64_t> shape) {
  int64_t elements = 1;
  for (int64_t extent : shape) elements *= extent;
  return elements;
}

at::Tensor ZooModel::Add(std::string name, std::vector<int64_t> shape, Init init, TensorKind kind) {
  const at::TensorOptions options = kind == TensorKind::kCounter ? options_.dtype(at::kLong) : options_;
  at::Tensor value = at::empty(shape, options);
  tensors_.push_back({std::move(name), kind, value, init});
  return value;
}

ZooModel::Affine ZooModel::AddLinear(const std::string& name, int64_t in, int64_t out) {
  const Init init = Init::Uniform(1 / std::sqrt(static_cast<double>(in)));
  at::Tensor weight = Add(name + ".weight", {out, in}, init);
  AddLinearLayer(name, weight);
  return {weight, Add(name + ".bias", {out}, init)};
}

at::Tensor ZooModel::Project(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) const {
  const at::Tensor y = at::linear(x, weight, bias);
  const auto beside = beside_.find(weight.unsafeGetTensorImpl());
  return beside == beside_.end() ? y : y + beside->second(x);
}

ZooModel::Affine ZooModel::AddConv(const std::string& name, int64_t in, int64_t out, int64_t kernel) {
  const Init init = Init::Uniform(1 / std::sqrt(static_cast<double>(in * kernel * kernel)));
  at::Tensor weight = Add(name + ".weight", {out, in, kernel, kernel}, init);
  return {weight, Add(name + ".bias", {out}, init)};
}

ZooModel::Norm ZooModel::AddBatchNorm(const std::string& name, int64_t channels) {
  Norm norm;
  norm.weight = Add(name + ".weight", {channels}, Init::Constant(1));
  norm.bias = Add(name + ".bias", {channels}, Init::Constant(0));
  norm.mean = Add(name + ".running_mean", {channels}, Init::Constant(0), TensorKind::kBuffer);
  norm.variance = Add(name + ".running_var", {channels}, Init::Constant(1), TensorKind::kBuffer);
  norm.batches = Add(name + ".num_batches_tracked", {}, Init::Constant(0), TensorKind::kCounter);
  return norm;
}

at::Tensor ZooModel::ApplyBatchNorm(Norm& norm, const at::Tensor& x, bool training) {
  if (training) norm.batches.add_(1);
  return at::batch_norm(x, norm.weight, norm.bias, norm.mean, norm.variance, training, /*momentum=*/0.1, /*eps=*/1e-5,
                        /*cudnn_enabled=*/true);
}

}  // namespace tributary::client
