// Models whose layers stand in a row, as a description beside the forward pass: what trains many clients at once (cohort_program.h) reads it and puts
// a client dimension in front of every tensor.
//
// A subclass's constructor calls Conv, Relu, MaxPool and Dense in order. x is [B, …input_shape].
// Threads and errors: as Model.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "client/torch/model.h"

namespace tributary::client {

class ChainModel : public ZooModel {
 public:
  at::Tensor Forward(const at::Tensor& x, bool training) override;
  std::span<const ChainLayer> chain() const override { return layers_; }
  bool repeatable() const override { return true; }

 protected:
  using ZooModel::ZooModel;
  void Conv(const std::string& name, int64_t in, int64_t out, int64_t kernel, int64_t padding);
  void Dense(const std::string& name, int64_t in, int64_t out);
  void Relu() { Add({.kind = ChainLayer::Kind::kRelu}, {}); }
  void MaxPool() { Add({.kind = ChainLayer::Kind::kMaxPool}, {}); }

 private:
  using ZooModel::Add;
  void Add(ChainLayer layer, Affine tensors);

  std::vector<ChainLayer> layers_;
  std::vector<Affine> tensors_of_;  // of each layer; undefined ones of a layer without
};

}  // namespace tributary::client
