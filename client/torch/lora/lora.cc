#include "client/torch/lora/lora.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include "client/core/random.h"
#include "client/torch/lora/adalora.h"
#include "client/torch/models/registry.h"
#include "common/check.h"

namespace tributary::client {
namespace {

constexpr uint64_t kAdapterPart = 0x6c6f7261;  // of the job's seed
constexpr double kTripletDeviation = 0.02;     // of A and B (PEFT's)

bool Matches(const std::string& layer, const std::string& target) {
  return layer == target || (layer.size() > target.size() && layer.ends_with(target) && layer[layer.size() - target.size() - 1] == '.');
}

// The layers that a job's targets name.
absl::StatusOr<std::vector<LinearLayer>> Targets(const ZooModel& base, const JobSpec& spec) {
  std::vector<LinearLayer> chosen;
  std::vector<std::string> names;
  for (const LinearLayer& layer : base.linear_layers()) {
    names.push_back(layer.name);
    for (const std::string& target : spec.model.adapter.targets) {
      if (!Matches(layer.name, target)) continue;
      chosen.push_back(layer);
      break;
    }
  }
  for (const std::string& target : spec.model.adapter.targets) {
    bool found = false;
    for (const std::string& name : names) found = found || Matches(name, target);
    if (!found) {
      return InvalidArgument("model.adapter.targets: model '{}' has no linear layer '{}'; it has: {}", spec.model.zoo, target, fmt::join(names, ", "));
    }
  }
  return chosen;
}

class AdaptedModel final : public Model {
 public:
  // `base`: frozen; `zoo`: the model in it.
  AdaptedModel(std::unique_ptr<TrainableModel> base, ZooModel& zoo, const std::vector<LinearLayer>& layers, const AdapterSpec& spec, AdapterMode mode)
      : base_(std::move(base)), zoo_(zoo), spec_(spec), scale_(spec.Scale()) {
    for (const LinearLayer& layer : layers) Add(layer, mode);
  }

  at::Tensor Forward(const at::Tensor& x, bool training) override {
    training_ = training;
    return zoo_.Forward(x, training);
  }
  std::vector<int64_t> input_shape() const override { return zoo_.input_shape(); }
  int64_t outputs() const override { return zoo_.outputs(); }
  bool next_token() const override { return zoo_.next_token(); }
  at::Tensor AuxiliaryLoss() const override {
    at::Tensor loss = zoo_.AuxiliaryLoss();
    if (triplets_.empty() || spec_.adalora.orthogonal == 0) return loss;
    at::Tensor departure = triplets_.front().Departure();
    for (size_t i = 1; i < triplets_.size(); ++i) departure = departure + triplets_[i].Departure();
    const at::Tensor penalty = departure * (spec_.adalora.orthogonal / static_cast<double>(2 * triplets_.size()));  // their mean over As and Bs
    return loss.defined() ? loss + penalty : penalty;
  }
  void EndStep() override {
    zoo_.EndStep();
    for (Triplets& layer : triplets_) layer.Measure();
  }
  std::map<std::string, double> Metrics() const override { return zoo_.Metrics(); }
  void BeginTask() override {
    const at::NoGradGuard no_grad;
    for (const Residual& layer : residuals_) layer.weight.copy_(layer.frozen).add_(layer.residual, scale_);
    for (Triplets& layer : triplets_) layer.Begin();
    zoo_.BeginTask();
  }

 private:
  struct Residual {
    at::Tensor weight, frozen, residual;
  };

  Init InitOf(AdapterPart part, AdapterMode mode, int64_t in, int64_t out) const {
    const double by_in = 1 / std::sqrt(static_cast<double>(in)), by_out = 1 / std::sqrt(static_cast<double>(out));
    const bool drawn = mode == AdapterMode::kFedSb;
    switch (part) {
      case AdapterPart::kA:
        return spec_.triplets() ? Init::Normal(kTripletDeviation) : drawn ? Init::Normal(by_in) : Init::Uniform(by_in);
      case AdapterPart::kB:
        return spec_.triplets() ? Init::Normal(kTripletDeviation) : drawn ? Init::Normal(by_out) : Init::Constant(0);
      case AdapterPart::kMask:
        return Init::Constant(1);
      case AdapterPart::kR:
      case AdapterPart::kE:
      case AdapterPart::kImportance:
      case AdapterPart::kResidual:
        break;
    }
    return Init::Constant(0);
  }

  void Add(const LinearLayer& layer, AdapterMode mode) {
    const int64_t out = layer.weight.size(0), in = layer.weight.size(1);
    const DType dtype = layer.weight.scalar_type() == at::kDouble ? DType::kF64 : DType::kF32;
    const AdapterShape shape{.layer = layer.name, .in = in, .out = out, .rank = spec_.rank, .triplets = spec_.triplets()};
    std::map<AdapterPart, at::Tensor> parts;
    for (AdapterTensor& tensor : AdapterTensors(mode, shape, dtype)) {
      const at::Tensor value = parts[tensor.part] = at::empty(tensor.spec.shape, layer.weight.options());
      tensors_.push_back({.name = std::move(tensor.spec.name), .kind = tensor.spec.kind, .value = value, .init = InitOf(tensor.part, mode, in, out)});
    }
    if (NeedsResidual(mode)) residuals_.push_back({layer.weight, layer.weight.clone(), parts.at(AdapterPart::kResidual)});
    const at::Tensor a = parts.at(AdapterPart::kA), b = parts.at(AdapterPart::kB);
    if (spec_.triplets()) {
      const Triplets& own = triplets_.emplace_back(
          Triplets::Tensors{a, parts.at(AdapterPart::kE), b, parts.at(AdapterPart::kImportance), parts.at(AdapterPart::kMask)}, spec_.adalora);
      zoo_.Attach(layer, [this, &own](const at::Tensor& x) { return own.Product(Dropped(x)) * scale_; });
      return;
    }
    const at::Tensor r = mode == AdapterMode::kFedSb ? parts.at(AdapterPart::kR) : at::Tensor();
    zoo_.Attach(layer, [this, a, b, r](const at::Tensor& x) {
      at::Tensor h = at::linear(Dropped(x), a);
      if (r.defined()) h = at::linear(h, r);
      return at::linear(h, b) * scale_;
    });
  }

  at::Tensor Dropped(const at::Tensor& x) const { return training_ && spec_.dropout > 0 ? at::dropout(x, spec_.dropout, /*train=*/true) : x; }

  std::unique_ptr<TrainableModel> base_;
  ZooModel& zoo_;
  const AdapterSpec spec_;
  const double scale_;
  bool training_ = false;
  std::vector<Residual> residuals_;
  std::deque<Triplets> triplets_;  // of each layer; what stands beside the layers refers to them
};

}  // namespace

absl::StatusOr<std::unique_ptr<TrainableModel>> MakeAdapted(const JobSpec& spec, const std::string& base_path, at::Device device) {
  TRIB_ASSIGN_OR_RETURN(std::unique_ptr<TrainableModel> base, TrainableModel::Create(spec.model, spec.dtype, "", device));
  auto* zoo = dynamic_cast<ZooModel*>(&base->model());
  TRIB_CHECK(zoo != nullptr, "model '{}' of the zoo is no ZooModel", spec.model.zoo);
  const TensorLayout& layout = base->layout();
  if (layout.trainable_count() != layout.float_count() || layout.counter_count() != 0) {
    return InvalidArgument("model.adapter: model '{}' has buffers that training changes, and below adapters everything is frozen; expected a model without", spec.model.zoo);
  }
  if (spec.model.base.empty()) {
    base->Load(base->Initialise(static_cast<uint64_t>(spec.seed)));
  } else {
    TRIB_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Read(base_path));
    const auto flat = ToFlat(file.view(), layout);
    if (!flat.ok()) return Annotate(flat.status(), "model.base");
    base->Load(*flat);
  }
  base->Freeze();
  TRIB_ASSIGN_OR_RETURN(const std::vector<LinearLayer> layers, Targets(*zoo, spec));
  return TrainableModel::Of(std::make_unique<AdaptedModel>(std::move(base), *zoo, layers, spec.model.adapter, AdaptersOf(spec.strategy)), spec.dtype, device);
}

absl::StatusOr<std::vector<std::byte>> AdaptersFrom(const SafetensorsView& file, const TensorLayout& layout, std::vector<std::byte> fresh) {
  std::vector<TensorSpec> named;
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (NeededInFiles(tensor.spec) || file.Find(tensor.spec.name) != nullptr) named.push_back(tensor.spec);
  }
  TRIB_ASSIGN_OR_RETURN(const TensorLayout given, TensorLayout::Create(std::move(named)));
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::byte> values, ToFlat(file, given));
  for (const PlacedTensor& tensor : given.tensors()) {
    std::memcpy(fresh.data() + layout.Find(tensor.spec.name)->offset_bytes, values.data() + tensor.offset_bytes, tensor.bytes);
  }
  return fresh;
}

uint64_t AdapterSeed(int64_t job_seed) { return MixSeeds(static_cast<uint64_t>(job_seed), kAdapterPart); }

void KeepComponents(TrainableModel& model, AdapterMode mode, int64_t rank) {
  const auto pairs = FindAdapters(mode, model.layout());
  TRIB_CHECK(pairs.ok(), "{}", MessageOf(pairs.status()));
  const at::NoGradGuard no_grad;
  for (const AdapterPair& pair : *pairs) {
    const auto all = static_cast<int64_t>(pair.rank), in = static_cast<int64_t>(pair.in), out = static_cast<int64_t>(pair.out);
    if (rank >= all) continue;
    model.trainable().narrow(0, static_cast<int64_t>(pair.a), all * in).view({all, in}).narrow(0, rank, all - rank).zero_();
    model.trainable().narrow(0, static_cast<int64_t>(pair.b), out * all).view({out, all}).narrow(1, rank, all - rank).zero_();
  }
}

LargeBytes TravellingPart(const TensorLayout& model, AdapterMode mode, uint64_t version, LargeBytes update) {
  if (mode == AdapterMode::kRoLora) {
    const auto pairs = FindAdapters(mode, model);
    TRIB_CHECK(pairs.ok(), "{}", MessageOf(pairs.status()));
    const std::vector<std::byte> live = PackLive(model, *pairs, MovesB(version + 1), update);
    return LargeBytes(live.begin(), live.end());
  }
  // Buffers are the server's. More than one group of trainable elements may be in front of them.
  update.resize(update.size() - (model.total_bytes() - model.trainable_count() * DTypeBytes(model.float_dtype())));
  return update;
}

}  // namespace tributary::client
