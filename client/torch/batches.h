// Minibatches of one identity's shard as tensors on the model's device. The examples stay where they are (one copy for all
// identities, example_store.h); a batch gathers its rows. Where a GPU has no room for all examples the shard is copied to it once per task.
// Borrows the Dataset. Threads: thread-compatible. May throw LibTorch's exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>

#include "client/core/dataset.h"
#include "client/torch/example_store.h"
#include "client/torch/trainable_model.h"
#include "common/status.h"

namespace tributary::client {

struct Batch {
  at::Tensor x;  // [B, …input_shape]
  at::Tensor y;  // [B] int64 class, or [B, 1] regression target
};

class Batches {
 public:
  // INVALID_ARGUMENT: no examples, an example of another size than the model's input, a label that the model has no output for.
  static absl::StatusOr<Batches> Create(const Dataset* data, TrainableModel& model, ExampleStore& store);

  size_t count() const { return count_; }
  bool regression() const { return regression_; }
  // Examples at these positions of the shard, each < count().
  Batch At(std::span<const uint32_t> positions) const;
  // The same in two steps, so that positions of many batches go to a GPU at once: their rows, int64 on the host, and what is in these rows.
  void RowsOf(std::span<const uint32_t> positions, int64_t* rows) const;
  Batch Gather(const at::Tensor& rows) const;
  // Mean loss over the batch: cross entropy of logits (of a language model over all positions that have a next one), or squared error. Checks the shape of `output` (a script's is known only now).
  absl::StatusOr<at::Tensor> Loss(const at::Tensor& output, const Batch& batch) const;
  // The same for outputs [members·B, outputs] of that many models on this batch, model by model: [members] means. Not of language models.
  absl::StatusOr<at::Tensor> LossOfEach(const at::Tensor& output, const Batch& batch, int64_t members) const;
  // How many examples of the batch `output` gets right; of a language model shares of them. Not for regression.
  double Correct(const at::Tensor& output, const Batch& batch) const;

 private:
  Batches() = default;
  absl::Status CheckOutput(const at::Tensor& output, int64_t rows) const;

  const Dataset* data_ = nullptr;
  size_t count_ = 0;
  bool regression_ = false;
  bool next_token_ = false;       // of the model: x is tokens, and what is learnt
  bool own_ = false;              // x_ and y_ are this shard alone, indexed by position
  std::vector<int64_t> shape_;    // of one example
  at::ScalarType type_ = at::kFloat;
  int64_t largest_label_ = 0;
  at::Tensor x_, y_;
};

}  // namespace tributary::client
