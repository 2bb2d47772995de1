// Small jobs with adapters, and tensors that the scripts of tests/golden make too.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/from_blob.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "client/torch/lora/lora.h"
#include "common/safetensors.h"
#include "tests/unit/client_torch/fixtures.h"

namespace tributary::client {

inline JobSpec AdapterJob(const std::string& zoo, ParamMap params, std::vector<std::string> targets, const std::string& mode = "fedit") {
  JobSpec spec = ZooJob(zoo, std::move(params));
  spec.dtype = DType::kF64;
  spec.model.adapter.kind = "lora";
  spec.model.adapter.rank = 3;
  spec.model.adapter.alpha = 6;
  spec.model.adapter.targets = std::move(targets);
  spec.strategy.params["adapters"] = mode;
  spec.local.steps = 4;
  spec.local.batch = 4;
  spec.local.lr = 0.1;
  return spec;
}

// The model in double after an update of its trainable elements, which is what of an adapted model travels.
inline FlatModel WithTravelled(const FlatModel& model, std::span<const std::byte> update) {
  FlatModel next = model;
  const std::vector<double> delta = Floats<double>(update, model.layout.trainable_count());
  std::vector<double> values = Floats<double>(model.bytes, model.layout.float_count());
  for (size_t i = 0; i < delta.size(); ++i) values[i] += delta[i];
  std::memcpy(next.bytes.data(), values.data(), next.bytes.size());
  return next;
}

inline JobSpec SmallMlp(const std::string& mode = "fedit") { return AdapterJob("mlp", {{"input", "5"}, {"classes", "3"}, {"hidden", "4"}}, {"fc1", "fc2"}, mode); }
inline JobSpec SmallTransformer(std::vector<std::string> targets) {
  return AdapterJob("transformer", {{"input", "12"}, {"vocabulary", "8"}, {"layers", "2"}, {"width", "8"}, {"heads", "2"}, {"hidden", "12"}}, std::move(targets));
}

inline JobSpec Plain(JobSpec spec) {
  spec.model.adapter = {};
  spec.strategy.params.clear();
  return spec;
}

inline std::unique_ptr<TrainableModel> Made(const JobSpec& spec) {
  auto model = MakeAdapted(spec, spec.model.base, at::Device(at::kCPU));
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

inline at::Tensor Of(TrainableModel& model, const std::string& name) {
  for (const ModelTensor& tensor : model.model().tensors()) {
    if (tensor.name == name) return tensor.value;
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

inline std::vector<double> RandomFloats(size_t count, uint64_t seed) {
  CounterRandom random(seed);
  std::vector<double> values(count);
  for (double& value : values) value = 0.3 * random.Normal();
  return values;
}

inline std::span<const std::byte> Bytes(const std::vector<double>& values) { return std::as_bytes(std::span(values)); }

inline at::Tensor FromNumbers(const std::vector<std::vector<double>>& rows) {
  std::vector<double> flat;
  for (const std::vector<double>& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  return at::from_blob(flat.data(), {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size())}, at::TensorOptions().dtype(at::kDouble)).clone();
}

// The tensors of tests/golden/peft_lora.py.
inline std::vector<double> Sines(size_t count, size_t tensor) {
  std::vector<double> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = 0.4 * std::sin(0.37 * static_cast<double>(i) + static_cast<double>(tensor));
  return values;
}

// The small job's model over the base of that script.
inline std::unique_ptr<TrainableModel> OnGoldenBase(JobSpec spec) {
  auto base = InitialModel(Plain(spec));
  EXPECT_TRUE(base.ok()) << base.status();
  size_t k = 0;
  for (const char* name : {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}) {
    const PlacedTensor* tensor = base->layout.Find(name);
    const std::vector<double> values = Sines(tensor->elements, k++);
    std::memcpy(base->bytes.data() + tensor->offset_bytes, values.data(), tensor->bytes);
  }
  const std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("adapter-base-{}.safetensors", getpid());
  EXPECT_TRUE(WriteSafetensors(path, base->layout, base->bytes).ok());
  spec.model.base = path.string();
  std::unique_ptr<TrainableModel> model = Made(spec);
  std::filesystem::remove(path);
  return model;
}

// Its batch, and its loss of an output.
inline at::Tensor GoldenBatch() {
  std::vector<double> x(30);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.9 * static_cast<double>(i));
  return at::from_blob(x.data(), {6, 5}, at::TensorOptions().dtype(at::kDouble)).clone();
}
inline at::Tensor GoldenLoss(const at::Tensor& output) {
  std::vector<int64_t> labels = {0, 1, 2, 0, 1, 2};
  return at::cross_entropy_loss(output, at::from_blob(labels.data(), {6}, at::TensorOptions().dtype(at::kLong)).clone());
}

inline nlohmann::json ReadGolden(const std::string& name) {
  std::ifstream file(TRIB_GOLDEN_DIR "/" + name);
  return nlohmann::json::parse(file);
}

inline double Difference(const at::Tensor& got, const nlohmann::json& rows) {
  return (got - FromNumbers(rows.get<std::vector<std::vector<double>>>())).abs().max().item<double>();
}

}  // namespace tributary::client
