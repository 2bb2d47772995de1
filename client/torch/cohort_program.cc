#include "client/torch/cohort_program.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "common/check.h"

namespace tributary::client {
namespace {

// Steps of one recording: its launches are then a small part of what they launch, and a run of any length is made of a few of them.
constexpr uint64_t kPartSteps = 32;
constexpr size_t kMaxRecorded = 16;

int64_t OffsetOf(const TensorLayout& layout, const std::string& name) {
  return static_cast<int64_t>(layout.Find(name)->offset_bytes / DTypeBytes(layout.float_dtype()));
}

// Of an image's side after a convolution of this kernel.
int64_t AfterConv(int64_t extent, int64_t kernel, int64_t padding) { return extent + 2 * padding - kernel + 1; }

// Clients that train on are the first ones: the run goes on with the smallest half, quarter, … of the places that holds them, of which there
// are few, so that few parts are recorded.
int64_t WidthFor(int64_t training, int64_t clients) {
  int64_t width = clients;
  while (width > 1 && (width + 1) / 2 >= training) width = (width + 1) / 2;
  return width;
}

// Numbers change their type there.
at::Tensor ToDevice(const at::Tensor& host, const at::Tensor& to) { return host.to(to.device(), host.scalar_type(), /*non_blocking=*/true); }

}  // namespace

std::string CohortProgram::Obstacle(TrainableModel& model) {
  const std::span<const ChainLayer> chain = model.model().chain();
  if (chain.empty()) return "its layers are not a row of convolutions, dense layers, ReLU and pooling";
  if (chain.back().kind != ChainLayer::Kind::kDense) return "its last layer is not a dense one";
  size_t tensors = 0;
  for (const ChainLayer& layer : chain) {
    if (layer.kind != ChainLayer::Kind::kConv && layer.kind != ChainLayer::Kind::kDense) continue;
    for (const char* part : {".weight", ".bias"}) {
      const PlacedTensor* tensor = model.layout().Find(layer.name + part);
      if (tensor == nullptr || tensor->spec.kind != TensorKind::kTrainable) return fmt::format("its tensor '{}{}' is not trained", layer.name, part);
      ++tensors;
    }
  }
  if (tensors != model.layout().tensors().size()) return "it has tensors beside those of its layers";
  return "";
}

int64_t CohortProgram::BytesPerClient(TrainableModel& model, const CohortShape& shape) {
  const auto parameters = static_cast<int64_t>(model.layout().trainable_count());
  std::vector<int64_t> image = model.model().input_shape();
  int64_t elements = ElementsOf(image);
  int64_t kept = 2 * elements;
  int64_t indices = 0;
  for (const ChainLayer& layer : model.model().chain()) {
    if (layer.kind == ChainLayer::Kind::kConv) {
      const std::vector<int64_t>& weight = model.layout().Find(layer.name + ".weight")->spec.shape;
      image = {weight[0], AfterConv(image[1], weight[2], layer.padding), AfterConv(image[2], weight[3], layer.padding)};
    } else if (layer.kind == ChainLayer::Kind::kMaxPool) {
      image = {image[0], image[1] / 2, image[2] / 2};
      indices += ElementsOf(image);
    } else if (layer.kind == ChainLayer::Kind::kDense) {
      image = {model.layout().Find(layer.name + ".weight")->spec.shape[0]};
    }
    elements = ElementsOf(image);
    kept += 2 * elements;  // the value, and its gradient
  }
  const int64_t vectors = shape.momentum != 0 ? 4 : 3;  // one for what libraries lay out anew
  const auto bytes = static_cast<int64_t>(c10::elementSize(model.scalar_type()));
  return (vectors * parameters + shape.batch * kept) * bytes + shape.batch * indices * 8;
}

CohortProgram::CohortProgram(TrainableModel& model, const CohortShape& shape)
    : shape_(shape), input_shape_(model.model().input_shape()), type_(model.scalar_type()), compute_(shape.bf16 ? at::kBFloat16 : model.scalar_type()),
      device_(model.device()), pool_(MakeGraphPool(model.device())) {
  TRIB_CHECK(Obstacle(model).empty());
  const at::NoGradGuard no_grad;
  for (const ChainLayer& layer : model.model().chain()) {
    Layer& ours = layers_.emplace_back();
    ours.kind = layer.kind;
    ours.padding = layer.padding;
    if (layer.kind != ChainLayer::Kind::kConv && layer.kind != ChainLayer::Kind::kDense) continue;
    ours.weight_shape = model.layout().Find(layer.name + ".weight")->spec.shape;
    ours.weight_at = OffsetOf(model.layout(), layer.name + ".weight");
    ours.bias_at = OffsetOf(model.layout(), layer.name + ".bias");
  }
  const at::TensorOptions floats = model.trainable().options();
  const int64_t c = shape.clients, p = model.trainable().size(0);
  const auto part = static_cast<int64_t>(kPartSteps);
  params_ = at::empty({c, p}, floats);
  gradient_ = at::zeros({c, p}, floats);
  if (shape.momentum != 0) velocity_ = at::empty({c, p}, floats);
  rows_ = at::zeros({part, c, shape.batch}, floats.dtype(at::kLong));
  shares_ = at::zeros({part, c, shape.batch}, floats);
  rates_ = at::zeros({part, c}, floats);
  losses_ = at::zeros({part, c}, floats);
}

CohortProgram::Result CohortProgram::Run(CohortSchedule& schedule, const at::Tensor& start, const ExampleTensors& examples,
                                         const std::function<bool(uint64_t)>& go_on) {
  const auto clients = static_cast<int64_t>(schedule.clients());
  TRIB_CHECK(clients <= shape_.clients && static_cast<int64_t>(schedule.batch()) <= shape_.batch);
  const at::NoGradGuard no_grad;
  if (recorded_for_ != examples.x.const_data_ptr()) {
    recorded_.clear();
    recorded_for_ = examples.x.const_data_ptr();
  }
  at::Tensor params = params_.narrow(0, 0, clients);
  params_.zero_();
  params.copy_(start);
  if (velocity_.defined()) velocity_.zero_();
  const uint64_t steps = schedule.steps();
  at::Tensor losses = at::zeros({static_cast<int64_t>(std::max<uint64_t>(1, steps)), shape_.clients}, losses_.options());
  const at::TensorOptions host = at::TensorOptions().pinned_memory(device_.is_cuda());
  const auto batch = static_cast<int64_t>(schedule.batch());
  for (uint64_t done = 0; done < steps && go_on(done);) {
    const uint64_t count = std::bit_floor(std::min(kPartSteps, steps - done));
    const int64_t width = WidthFor(static_cast<int64_t>(schedule.training(done)), shape_.clients);
    const auto n = static_cast<int64_t>(count);
    at::Tensor rows = at::empty({n, width, batch}, host.dtype(at::kLong)), shares = at::empty({n, width, batch}, host.dtype(at::kDouble)),
               rates = at::empty({n, width}, host.dtype(at::kDouble));
    const auto elements = static_cast<size_t>(n * width * batch);
    schedule.Next(count, static_cast<size_t>(width), {rows.mutable_data_ptr<int64_t>(), elements}, {shares.mutable_data_ptr<double>(), elements},
                  {rates.mutable_data_ptr<double>(), static_cast<size_t>(n * width)});
    const auto of_part = [&](at::Tensor& all) { return all.narrow(0, 0, n).narrow(1, 0, width); };
    of_part(rows_).narrow(2, 0, batch).copy_(ToDevice(rows, rows_));
    of_part(shares_).zero_().narrow(2, 0, batch).copy_(ToDevice(shares, shares_));
    of_part(rates_).copy_(ToDevice(rates, rates_));
    Part(count, width, examples);
    losses.narrow(0, static_cast<int64_t>(done), n).narrow(1, 0, width).copy_(of_part(losses_));
    done += count;
  }
  Result result;
  result.updates = params.sub_(start);
  // An infinity or NaN of any element shows in the largest magnitude.
  const at::Tensor largest = at::linalg_vector_norm(result.updates, std::numeric_limits<double>::infinity(), at::IntArrayRef{1});
  result.losses = losses.to(at::kCPU, at::kDouble);
  result.largest = largest.to(at::kCPU, at::kDouble);
  return result;
}

// On a GPU: as it is the first time, recorded the second, repeated from then on. What comes but once is not worth a recording.
void CohortProgram::Part(uint64_t steps, int64_t width, const ExampleTensors& examples) {
  if (!DeviceGraph::CanRecord(device_)) return Steps(steps, width, examples);
  if (recorded_.size() > kMaxRecorded) recorded_.clear();
  Recorded& recorded = recorded_[{steps, width}];
  if (recorded.uses++ == 0) return Steps(steps, width, examples);
  if (recorded.graph == nullptr) recorded.graph = DeviceGraph::Record(pool_, [&] { Steps(steps, width, examples); });
  recorded.graph->Replay();
}

void CohortProgram::Steps(uint64_t steps, int64_t width, const ExampleTensors& examples) {
  const at::NoGradGuard no_grad;
  for (uint64_t k = 0; k < steps; ++k) Step(static_cast<int64_t>(k), width, examples);
}

void CohortProgram::Step(int64_t step, int64_t width, const ExampleTensors& examples) {
  const at::Tensor rows = rows_.select(0, step).narrow(0, 0, width).reshape({-1});
  const at::Tensor share = shares_.select(0, step).narrow(0, 0, width);  // [C, B]
  at::Tensor h = Arranged(examples.x.index_select(0, rows), width);
  std::vector<Kept> kept(layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) h = Forward(layers_[i], h, width, &kept[i]);

  const at::Tensor out = h.to(type_);  // [C, B, outputs]
  const at::Tensor y = examples.y.index_select(0, rows).view({width, shape_.batch, 1});
  at::Tensor g, loss;
  if (shape_.regression) {
    const at::Tensor error = out - y.to(type_);
    loss = (error.square().squeeze(2) * share).sum(1);
    g = error * (2 * share).unsqueeze(2);
  } else {
    const at::Tensor log_p = out.log_softmax(2);
    loss = -(log_p.gather(2, y).squeeze(2) * share).sum(1);
    g = log_p.exp().mul_(share.unsqueeze(2));
    g.scatter_add_(2, y, -share.unsqueeze(2));
  }
  losses_.select(0, step).narrow(0, 0, width).copy_(loss);

  g = Cast(g);
  for (size_t i = layers_.size(); i-- > 0;) g = Backward(layers_[i], g, width, kept[i], /*wants_input=*/i > 0);

  at::Tensor params = params_.narrow(0, 0, width), gradient = gradient_.narrow(0, 0, width);
  if (shape_.weight_decay != 0) gradient.add_(params, shape_.weight_decay);
  if (velocity_.defined()) gradient = velocity_.narrow(0, 0, width).mul_(shape_.momentum).add_(gradient);
  params.addcmul_(gradient, rates_.select(0, step).narrow(0, 0, width).unsqueeze(1), -1);
}

at::Tensor CohortProgram::Cast(const at::Tensor& tensor) const { return tensor.to(compute_); }

at::Tensor CohortProgram::View(const at::Tensor& flat, int64_t at, int64_t width, const std::vector<int64_t>& shape) const {
  std::vector<int64_t> with_clients = {width};
  with_clients.insert(with_clients.end(), shape.begin(), shape.end());
  return flat.narrow(0, 0, width).narrow(1, at, ElementsOf(shape)).view(with_clients);
}

// x: [C·B, elements of one].
at::Tensor CohortProgram::Arranged(const at::Tensor& x, int64_t width) const {
  const at::Tensor cast = Cast(x);
  if (layers_[0].kind != ChainLayer::Kind::kConv && layers_[0].kind != ChainLayer::Kind::kMaxPool) return cast.view({width, shape_.batch, -1});
  const int64_t channels = input_shape_[0], height = input_shape_[1], side = input_shape_[2];
  return cast.view({width, shape_.batch, channels, height, side}).permute({1, 3, 4, 0, 2}).reshape({shape_.batch, height, side, width * channels}).permute({0, 3, 1, 2});
}

at::Tensor CohortProgram::Forward(const Layer& layer, const at::Tensor& h, int64_t width, Kept* kept) const {
  switch (layer.kind) {
    case ChainLayer::Kind::kConv: {
      const std::vector<int64_t>& shape = layer.weight_shape;
      kept->input = h;
      kept->weight = Cast(View(params_, layer.weight_at, width, shape).reshape({width * shape[0], shape[1], shape[2], shape[3]}));
      const at::Tensor bias = Cast(View(params_, layer.bias_at, width, {shape[0]}).reshape({width * shape[0]}));
      return at::convolution(h, kept->weight, bias, {1, 1}, {layer.padding, layer.padding}, {1, 1}, /*transposed=*/false, {0, 0}, /*groups=*/width);
    }
    case ChainLayer::Kind::kDense: {
      kept->output = h;  // whose shape the gradient takes again
      kept->input = h.dim() == 4 ? h.contiguous().view({shape_.batch, width, -1}).transpose(0, 1) : h;
      kept->weight = Cast(View(params_, layer.weight_at, width, layer.weight_shape));
      const at::Tensor bias = Cast(View(params_, layer.bias_at, width, {layer.weight_shape[0]}));
      return at::baddbmm(bias.unsqueeze(1), kept->input, kept->weight.transpose(1, 2));
    }
    case ChainLayer::Kind::kRelu:
      // In place: no layer's backward pass needs what came out of it.
      return kept->output = at::Tensor(h).clamp_min_(0);
    case ChainLayer::Kind::kMaxPool: {
      kept->input = h;
      auto [output, indices] = at::max_pool2d_with_indices(h, {2, 2});
      kept->indices = indices;
      return output;
    }
  }
  return {};
}

at::Tensor CohortProgram::Backward(const Layer& layer, const at::Tensor& g, int64_t width, const Kept& kept, bool wants_input) {
  switch (layer.kind) {
    case ChainLayer::Kind::kConv: {
      const std::vector<int64_t>& shape = layer.weight_shape;
      const int64_t outputs = width * shape[0];
      const auto [gx, gw, gb] = at::convolution_backward(g, kept.input, kept.weight, at::OptionalIntArrayRef({outputs}), {1, 1}, {layer.padding, layer.padding},
                                                         {1, 1}, /*transposed=*/false, {0, 0}, /*groups=*/width, {wants_input, true, true});
      View(gradient_, layer.weight_at, width, shape).copy_(gw.unflatten(0, {width, shape[0]}));
      View(gradient_, layer.bias_at, width, {shape[0]}).copy_(gb.view({width, shape[0]}));
      return gx;
    }
    case ChainLayer::Kind::kDense: {
      at::Tensor gw = View(gradient_, layer.weight_at, width, layer.weight_shape), gb = View(gradient_, layer.bias_at, width, {layer.weight_shape[0]});
      if (compute_ == type_) {
        at::bmm_out(gw, g.transpose(1, 2), kept.input);
        at::sum_out(gb, g, at::IntArrayRef{1});
      } else {
        gw.copy_(at::bmm(g.transpose(1, 2), kept.input));
        gb.copy_(g.sum(1));
      }
      if (!wants_input) return {};
      const at::Tensor gx = at::bmm(g, kept.weight);
      if (kept.output.dim() != 4) return gx;
      return gx.transpose(0, 1).reshape(kept.output.sizes()).contiguous(at::MemoryFormat::ChannelsLast);
    }
    case ChainLayer::Kind::kRelu:
      return at::threshold_backward(g, kept.output, 0);
    case ChainLayer::Kind::kMaxPool:
      return at::max_pool2d_with_indices_backward(g, kept.input, {2, 2}, {2, 2}, {0, 0}, {1, 1}, /*ceil_mode=*/false, kept.indices);
  }
  return {};
}

}  // namespace tributary::client
