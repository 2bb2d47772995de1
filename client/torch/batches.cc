#include "client/torch/batches.h"

#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mse_loss.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace tributary::client {

namespace {

absl::Status CheckTokens(std::span<const float> tokens, int64_t vocabulary, uint32_t example) {
  for (const float token : tokens) {
    if (!(token >= 0 && token < static_cast<float>(vocabulary)) || token != std::floor(token)) {
      return InvalidArgument("data: example {} has value {}, the model's tokens are 0 to {}; use data.source text, or set the model's parameter 'vocabulary'",
                             example, token, vocabulary - 1);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Batches> Batches::Create(const Dataset* data, TrainableModel& model, ExampleStore& store) {
  if (data == nullptr || data->all == nullptr || data->count() == 0) return InvalidArgument("data: this identity has no examples");
  const Examples& all = *data->all;
  Batches result;
  result.data_ = data;
  result.count_ = data->count();
  result.regression_ = all.labels.empty();
  result.type_ = model.scalar_type();
  result.shape_ = model.model().input_shape();
  if (result.shape_.empty()) result.shape_ = all.example_shape;
  const auto elements = static_cast<int64_t>(all.example_elements());
  if (ElementsOf(result.shape_) != elements) {
    return InvalidArgument("data: an example has {} values ({}), the model expects {} ({}); set the model's parameter 'input'", elements,
                           fmt::format("{}", fmt::join(all.example_shape, "x")), ElementsOf(result.shape_),
                           fmt::format("{}", fmt::join(result.shape_, "x")));
  }
  const int64_t outputs = model.model().outputs();
  result.next_token_ = model.model().next_token();
  if (result.regression_ && outputs > 1) {
    return InvalidArgument("data: regression targets need a model with 1 output, this one has {}; set its parameter classes=1", outputs);
  }
  for (uint32_t index : data->indices) {
    if (index >= all.count()) return InvalidArgument("data: example {} of a view, the data has {}", index, all.count());
    if (result.next_token_) {
      TRIB_RETURN_IF_ERROR(CheckTokens(std::span(all.x).subspan(static_cast<size_t>(index) * all.example_elements(), all.example_elements()), outputs, index));
      continue;  // its labels say where it comes from, nothing that is learnt
    }
    if (result.regression_) continue;
    const int64_t label = all.labels[index];
    if (label < 0 || (outputs > 0 && label >= outputs)) {
      return InvalidArgument("data: example {} has label {}, the model has outputs 0 to {}; set its parameter 'classes'", index, label,
                             outputs - 1);
    }
    result.largest_label_ = std::max(result.largest_label_, label);
  }

  if (std::optional<ExampleTensors> all_tensors = store.All(data->all)) {
    result.x_ = std::move(all_tensors->x);
    result.y_ = std::move(all_tensors->y);
  } else {
    ExampleTensors own = store.Of(*data);
    result.x_ = std::move(own.x);
    result.y_ = std::move(own.y);
    result.own_ = true;
  }
  return result;
}

void Batches::RowsOf(std::span<const uint32_t> positions, int64_t* rows) const {
  for (uint32_t position : positions) *rows++ = own_ ? position : data_->indices[position];
}

Batch Batches::At(std::span<const uint32_t> positions) const {
  at::Tensor rows = at::empty({static_cast<int64_t>(positions.size())}, at::TensorOptions().dtype(at::kLong));
  RowsOf(positions, rows.mutable_data_ptr<int64_t>());
  return Gather(rows.to(x_.device()));
}

Batch Batches::Gather(const at::Tensor& rows) const {
  std::vector<int64_t> shape = {rows.size(0)};
  shape.insert(shape.end(), shape_.begin(), shape_.end());
  Batch batch;
  batch.x = x_.index_select(0, rows).to(type_).view(shape);
  batch.y = y_.index_select(0, rows);
  if (regression_) batch.y = batch.y.to(type_);
  return batch;
}

absl::StatusOr<at::Tensor> Batches::Loss(const at::Tensor& output, const Batch& batch) const {
  const int64_t rows = batch.x.size(0);
  if (next_token_) {
    const int64_t steps = batch.x.size(1) - 1;
    return at::cross_entropy_loss(output.slice(1, 0, steps).reshape({rows * steps, -1}), batch.x.slice(1, 1).reshape({rows * steps}).to(at::kLong));
  }
  TRIB_RETURN_IF_ERROR(CheckOutput(output, rows));
  return regression_ ? at::mse_loss(output, batch.y) : at::cross_entropy_loss(output, batch.y);
}

absl::StatusOr<at::Tensor> Batches::LossOfEach(const at::Tensor& output, const Batch& batch, int64_t members) const {
  const int64_t rows = batch.x.size(0);
  TRIB_RETURN_IF_ERROR(CheckOutput(output, members * rows));
  const at::Tensor losses = regression_ ? at::mse_loss(output, batch.y.repeat({members, 1}), at::Reduction::None)
                                        : at::cross_entropy_loss(output, batch.y.repeat({members}), {}, at::Reduction::None);
  return losses.view({members, rows}).mean(1);
}

absl::Status Batches::CheckOutput(const at::Tensor& output, int64_t rows) const {
  const int64_t least = regression_ ? 1 : largest_label_ + 1;
  if (output.dim() == 2 && output.size(0) == rows && output.size(1) >= least && (!regression_ || output.size(1) == 1)) return absl::OkStatus();
  return InvalidArgument("model: expected an output of shape [{}, {}{}], got [{}]", rows, least, regression_ ? "" : " or more", fmt::format("{}", fmt::join(output.sizes().vec(), ", ")));
}

double Batches::Correct(const at::Tensor& output, const Batch& batch) const {
  if (!next_token_) return static_cast<double>(output.argmax(1).eq(batch.y).sum().item<int64_t>());
  const int64_t steps = batch.x.size(1) - 1;
  const at::Tensor right = output.slice(1, 0, steps).argmax(2).eq(batch.x.slice(1, 1).to(at::kLong));
  return static_cast<double>(right.sum().item<int64_t>()) / static_cast<double>(steps);
}

}  // namespace tributary::client
