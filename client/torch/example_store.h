// The examples of data sets as tensors on a device. On the CPU they are where the data set has them; on a GPU a data set is copied there once
// and serves all identities and tasks, where it takes no more than half of the memory that is free.
// Threads: thread-compatible. Keeps copies of data sets that somebody else still holds; what nobody holds is dropped at the next call. May
// throw LibTorch's exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "client/core/dataset.h"

namespace tributary::client {

struct ExampleTensors {
  at::Tensor x;  // [examples, elements of one] float
  at::Tensor y;  // [examples] int64 classes, or [examples, 1] float targets
};

class ExampleStore {
 public:
  explicit ExampleStore(at::Device device) : device_(device) {}
  at::Device device() const { return device_; }
  // All examples, by number; nothing: they do not fit.
  std::optional<ExampleTensors> All(const std::shared_ptr<const Examples>& all);
  // A view's own, by position in it.
  ExampleTensors Of(const Dataset& view) const;

 private:
  struct Kept {
    const Examples* examples = nullptr;
    std::weak_ptr<const Examples> holder;
    ExampleTensors tensors;
  };
  at::Device device_;
  std::vector<Kept> kept_;
};

// Bytes of the device's memory that are free now, LibTorch's own reserves among them; 0 on the CPU, where nobody asks.
uint64_t FreeDeviceBytes(at::Device device);

}  // namespace tributary::client
