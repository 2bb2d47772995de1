#include "client/torch/trainable_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "client/core/random.h"
#include "client/torch/models/registry.h"
#include "client/torch/torchscript.h"
#include "common/check.h"

namespace tributary::client {
namespace {

template <typename T>
void Fill(const Init& init, uint64_t seed, uint64_t stream, std::byte* out, size_t elements) {
  CounterRandom random(seed, stream);
  for (size_t i = 0; i < elements; ++i) {
    double value = init.value;
    if (init.kind == Init::Kind::kUniform) value *= 2 * random.Uniform() - 1;
    if (init.kind == Init::Kind::kNormal) value *= random.Normal();
    const T rounded = static_cast<T>(value);
    std::memcpy(out + i * sizeof(T), &rounded, sizeof(T));
  }
}

// Exponents of ones are infinities' and NaNs'. One pass, where LibTorch's isfinite makes a tensor for each of its comparisons.
template <typename Bits, typename T>
bool AllFinite(const T* values, size_t count, Bits exponent) {
  bool other = false;
  for (size_t i = 0; i < count; ++i) other |= (std::bit_cast<Bits>(values[i]) & exponent) == exponent;
  return !other;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainableModel>> TrainableModel::Create(const ModelSpec& spec, DType dtype, const std::string& script_path,
                                                                       at::Device device) {
  if (dtype != DType::kF32 && dtype != DType::kF64) {
    return InvalidArgument("dtype: expected F32 or F64, got {}", DTypeName(dtype));
  }
  const at::TensorOptions options = at::TensorOptions().dtype(dtype == DType::kF32 ? at::kFloat : at::kDouble).device(device);
  std::unique_ptr<Model> model;
  if (!spec.zoo.empty()) {
    TRIB_ASSIGN_OR_RETURN(model, MakeZooModel(spec, options));
  } else if (!spec.torchscript.empty()) {
    TRIB_ASSIGN_OR_RETURN(model, LoadTorchScript(script_path, options));
  } else {
    return InvalidArgument("model: a model known by its tensors alone ('{}') has no forward pass; name a zoo or torchscript model to train",
                           spec.tensors);
  }
  return Of(std::move(model), dtype, device);
}

absl::StatusOr<std::unique_ptr<TrainableModel>> TrainableModel::Of(std::unique_ptr<Model> model, DType dtype, at::Device device) {
  const at::TensorOptions options = at::TensorOptions().dtype(dtype == DType::kF32 ? at::kFloat : at::kDouble).device(device);
  std::unique_ptr<TrainableModel> result(new TrainableModel());
  result->model_ = std::move(model);
  std::vector<TensorSpec> specs;
  std::map<std::string, const ModelTensor*> by_name;
  for (const ModelTensor& tensor : result->model_->tensors()) {
    specs.push_back({tensor.name, tensor.value.sizes().vec(), tensor.kind == TensorKind::kCounter ? DType::kI64 : dtype, tensor.kind});
    by_name[tensor.name] = &tensor;
  }
  TRIB_ASSIGN_OR_RETURN(result->layout_, TensorLayout::Create(std::move(specs)));

  const at::NoGradGuard no_grad;
  const TensorLayout& layout = result->layout_;
  const auto trainable_count = static_cast<int64_t>(layout.trainable_count());
  result->floats_ = at::zeros({static_cast<int64_t>(layout.float_count())}, options);
  result->counters_ = at::zeros({static_cast<int64_t>(layout.counter_count())}, options.dtype(at::kLong));
  result->gradient_ = at::zeros({trainable_count}, options);
  result->trainable_ = result->floats_.narrow(0, 0, trainable_count);
  for (const PlacedTensor& placed : layout.tensors()) {
    const at::Tensor& value = by_name.at(placed.spec.name)->value;
    const auto elements = static_cast<int64_t>(placed.elements);
    const bool counter = placed.spec.kind == TensorKind::kCounter;
    const auto offset = static_cast<int64_t>(counter ? (placed.offset_bytes - layout.float_bytes()) / 8
                                                     : placed.offset_bytes / DTypeBytes(dtype));
    at::Tensor view = (counter ? result->counters_ : result->floats_).narrow(0, offset, elements).view(placed.spec.shape);
    view.copy_(value);
    value.set_data(view);
    if (placed.spec.kind == TensorKind::kTrainable) {
      value.requires_grad_(true);
      // backward() adds into a gradient that is already there.
      value.mutable_grad() = result->gradient_.narrow(0, offset, elements).view(placed.spec.shape);
    }
  }
  result->loaded_ = result->trainable_.clone();
  return result;
}

void TrainableModel::Load(std::span<const std::byte> flat) {
  TRIB_CHECK(flat.size() == layout_.total_bytes(), "flat model of {} bytes for a layout of {}", flat.size(), layout_.total_bytes());
  const at::NoGradGuard no_grad;
  if (device().is_cpu()) {
    // An unaligned source is fine for memcpy, not for a tensor's view.
    std::memcpy(floats_.mutable_data_ptr(), flat.data(), layout_.float_bytes());
  } else {
    // from_blob wants a mutable pointer; the copy only reads.
    floats_.copy_(at::from_blob(const_cast<std::byte*>(flat.data()), floats_.sizes(), at::TensorOptions().dtype(scalar_type())));
  }
  if (layout_.counter_count() > 0) {
    at::Tensor counters = at::empty(counters_.sizes(), counters_.options().device(at::kCPU));
    std::memcpy(counters.mutable_data_ptr(), flat.data() + layout_.float_bytes(), layout_.counter_count() * 8);
    counters_.copy_(counters);
  }
  loaded_.copy_(trainable_);
}

LargeBytes TrainableModel::ToBytes(const at::Tensor& floats) const {
  const size_t float_bytes = static_cast<size_t>(floats.numel()) * DTypeBytes(layout_.float_dtype());
  LargeBytes flat(float_bytes + layout_.counter_count() * 8);
  at::from_blob(flat.data(), floats.sizes(), at::TensorOptions().dtype(scalar_type())).copy_(floats);
  if (layout_.counter_count() > 0) {
    const at::Tensor counters = counters_.to(at::kCPU);
    std::memcpy(flat.data() + float_bytes, counters.const_data_ptr(), layout_.counter_count() * 8);
  }
  return flat;
}

LargeBytes TrainableModel::Values() const { return ToBytes(floats_); }

LargeBytes TrainableModel::Update() const {
  const at::NoGradGuard no_grad;
  at::Tensor update = floats_.narrow(0, 0, static_cast<int64_t>(layout_.summed_count())).clone();
  update.narrow(0, 0, trainable_.size(0)).sub_(loaded_);
  return ToBytes(update);
}

at::Tensor TrainableModel::Delta() const {
  const at::NoGradGuard no_grad;
  return trainable_.sub(loaded_);
}

LargeBytes TrainableModel::BuffersAndCounters() const {
  const auto count = static_cast<int64_t>(layout_.summed_count() - layout_.trainable_count());
  const size_t bytes = static_cast<size_t>(count) * DTypeBytes(layout_.float_dtype());
  LargeBytes rest(bytes + layout_.counter_count() * 8);
  const at::NoGradGuard no_grad;
  if (count > 0) at::from_blob(rest.data(), {count}, at::TensorOptions().dtype(scalar_type())).copy_(floats_.narrow(0, trainable_.size(0), count));
  if (layout_.counter_count() > 0) std::memcpy(rest.data() + bytes, counters_.to(at::kCPU).const_data_ptr(), layout_.counter_count() * 8);
  return rest;
}

bool TrainableModel::IsFinite() const {
  if (!device().is_cpu()) return std::isfinite(at::linalg_vector_norm(floats_, std::numeric_limits<double>::infinity()).item<double>());
  const at::Tensor& host = floats_;
  const auto count = static_cast<size_t>(host.numel());
  return host.scalar_type() == at::kDouble ? AllFinite<uint64_t>(host.const_data_ptr<double>(), count, uint64_t{0x7FF} << 52)
                                           : AllFinite<uint32_t>(host.const_data_ptr<float>(), count, uint32_t{0xFF} << 23);
}

std::vector<std::byte> TrainableModel::Initialise(uint64_t seed) const {
  const LargeBytes values = Values();
  std::vector<std::byte> flat(values.begin(), values.end());
  if (model_->outputs() == 0) return flat;
  std::map<std::string, const Init*> by_name;
  for (const ModelTensor& tensor : model_->tensors()) by_name[tensor.name] = &tensor.init;
  uint64_t stream = 0;
  for (const PlacedTensor& placed : layout_.tensors()) {
    const Init& init = *by_name.at(placed.spec.name);
    std::byte* out = flat.data() + placed.offset_bytes;
    if (placed.spec.kind == TensorKind::kCounter) {
      Fill<int64_t>(init, seed, stream++, out, placed.elements);
    } else if (layout_.float_dtype() == DType::kF64) {
      Fill<double>(init, seed, stream++, out, placed.elements);
    } else {
      Fill<float>(init, seed, stream++, out, placed.elements);
    }
  }
  return flat;
}

void TrainableModel::Freeze() {
  for (const ModelTensor& tensor : model_->tensors()) {
    if (tensor.kind != TensorKind::kTrainable) continue;
    tensor.value.mutable_grad() = at::Tensor();
    tensor.value.requires_grad_(false);
  }
  gradient_ = at::Tensor();
  loaded_ = at::Tensor();
}

at::Tensor TrainableModel::Scratch(size_t index) {
  const at::NoGradGuard no_grad;
  while (scratch_.size() <= index) scratch_.push_back(at::empty(gradient_.sizes(), gradient_.options()));
  return scratch_[index].zero_();
}

at::Tensor TrainableModel::ScratchNumber(size_t index) {
  while (numbers_.size() <= index) numbers_.push_back(at::empty({}, gradient_.options()));
  return numbers_[index];
}

}  // namespace tributary::client
