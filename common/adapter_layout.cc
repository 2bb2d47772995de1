#include "common/adapter_layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cstring>
#include <map>

#include "common/suggest.h"

namespace tributary {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
struct PartName {
  std::string_view suffix;
  AdapterPart part;
  bool triplets;
};
constexpr PartName kPartNames[] = {{".lora_A.weight", AdapterPart::kA, false},     {".lora_B.weight", AdapterPart::kB, false},
                                   {".lora_R.weight", AdapterPart::kR, false},     {".base_layer.residual", AdapterPart::kResidual, false},
                                   {".lora_A", AdapterPart::kA, true},             {".lora_E", AdapterPart::kE, true},
                                   {".lora_B", AdapterPart::kB, true},             {".lora_importance", AdapterPart::kImportance, true},
                                   {".lora_mask", AdapterPart::kMask, true},       {".base_layer.residual", AdapterPart::kResidual, true}};
constexpr std::string_view kLive = ".lora_live";
constexpr std::array<std::string_view, 8> kModes = {"none", "fedit", "ffa", "rolora", "flora", "flexlora", "fedex", "fedsb"};

bool Trains(AdapterMode mode, AdapterPart part) {
  if (part == AdapterPart::kR || part == AdapterPart::kE || part == AdapterPart::kImportance) return true;
  if (part == AdapterPart::kResidual || part == AdapterPart::kMask || mode == AdapterMode::kFedSb) return false;
  return part == AdapterPart::kB || mode != AdapterMode::kFfa;
}

struct Named {
  std::string layer;
  AdapterPart part;
};

absl::StatusOr<Named> Split(const std::string& name) {
  if (name.starts_with(kPrefix)) {
    for (const PartName& known : kPartNames) {
      if (name.ends_with(known.suffix) && name.size() > kPrefix.size() + known.suffix.size()) {
        return Named{name.substr(kPrefix.size(), name.size() - kPrefix.size() - known.suffix.size()), known.part};
      }
    }
  }
  return InvalidArgument("tensor '{}': expected one of an adapter, {}<layer>{} or the like", name, kPrefix, kPartNames[0].suffix);
}

std::string NameOf(const std::string& layer, AdapterPart part, bool triplets) {
  for (const PartName& known : kPartNames) {
    if (known.part == part && known.triplets == triplets) return fmt::format("{}{}{}", kPrefix, layer, known.suffix);
  }
  return "";
}

}  // namespace

std::string_view AdapterModeName(AdapterMode mode) { return kModes[static_cast<size_t>(mode)]; }

std::string AdapterModeNames() { return fmt::format("{}", fmt::join(kModes, "|")); }

absl::StatusOr<AdapterMode> AdapterModeOf(std::string_view name) {
  for (size_t i = 0; i < kModes.size(); ++i) {
    if (kModes[i] == name) return static_cast<AdapterMode>(i);
  }
  const std::vector<std::string> known(kModes.begin(), kModes.end());
  return InvalidArgument("adapters must be in {}, got '{}'{}", AdapterModeNames(), name, DidYouMean(name, known));
}

bool NeedsResidual(AdapterMode mode) { return mode == AdapterMode::kFlora || mode == AdapterMode::kFedEx; }

bool TakesAnyRank(AdapterMode mode) { return mode == AdapterMode::kFlora || mode == AdapterMode::kFlexLora; }

std::vector<AdapterTensor> AdapterTensors(AdapterMode mode, const AdapterShape& shape, DType dtype) {
  std::vector<AdapterTensor> tensors;
  const auto add = [&](AdapterPart part, std::vector<int64_t> extents) {
    tensors.push_back({part, {.name = NameOf(shape.layer, part, shape.triplets), .shape = std::move(extents), .dtype = dtype,
                              .kind = Trains(mode, part) ? TensorKind::kTrainable : TensorKind::kBuffer}});
  };
  add(AdapterPart::kA, {shape.rank, shape.in});
  if (shape.triplets) add(AdapterPart::kE, {shape.rank, 1});
  add(AdapterPart::kB, {shape.out, shape.rank});
  if (shape.triplets) {
    add(AdapterPart::kImportance, {shape.rank});
    add(AdapterPart::kMask, {shape.rank});
  } else if (mode == AdapterMode::kFedSb) {
    add(AdapterPart::kR, {shape.rank, shape.rank});
  }
  if (NeedsResidual(mode)) add(AdapterPart::kResidual, {shape.out, shape.in});
  return tensors;
}

bool NeededInFiles(const TensorSpec& spec) {
  const absl::StatusOr<Named> named = Split(spec.name);
  return !named.ok() || (named->part != AdapterPart::kResidual && named->part != AdapterPart::kImportance && named->part != AdapterPart::kMask);
}

absl::StatusOr<std::vector<AdapterShape>> AdapterShapes(const TensorLayout& file) {
  std::vector<AdapterShape> shapes;
  for (const PlacedTensor& a : file.tensors()) {
    const absl::StatusOr<Named> named = Split(a.spec.name);
    if (!named.ok() || a.spec.name != NameOf(named->layer, AdapterPart::kA, /*triplets=*/false) || a.spec.shape.size() != 2) continue;
    const PlacedTensor* b = file.Find(NameOf(named->layer, AdapterPart::kB, /*triplets=*/false));
    if (b == nullptr || b->spec.shape.size() != 2) return InvalidArgument("layer '{}': expected lora_B [out, r] beside its lora_A", named->layer);
    shapes.push_back({.layer = named->layer, .in = a.spec.shape[1], .out = b->spec.shape[0], .rank = a.spec.shape[0]});
  }
  return shapes;
}

absl::StatusOr<std::vector<AdapterPair>> FindAdapters(AdapterMode mode, const TensorLayout& model) {
  struct Found {
    const PlacedTensor* tensor = nullptr;
    size_t position = 0;
  };
  std::map<std::string, std::map<AdapterPart, Found>> layers;
  std::vector<std::string> order;
  size_t position = 0;
  for (const PlacedTensor& tensor : model.tensors()) {
    TRIB_ASSIGN_OR_RETURN(const Named named, Split(tensor.spec.name));
    if (!layers.contains(named.layer)) order.push_back(named.layer);
    if (!layers[named.layer].emplace(named.part, Found{&tensor, position}).second) {
      return InvalidArgument("tensor '{}': layer '{}' has this one already, under a name of another kind of adapter", tensor.spec.name, named.layer);
    }
    position += tensor.elements;
  }
  std::vector<AdapterPair> pairs;
  for (const std::string& layer : order) {
    const std::map<AdapterPart, Found>& found = layers.at(layer);
    const auto a = found.find(AdapterPart::kA), b = found.find(AdapterPart::kB);
    const std::vector<int64_t> none;
    const std::vector<int64_t>& a_shape = a == found.end() ? none : a->second.tensor->spec.shape;
    const std::vector<int64_t>& b_shape = b == found.end() ? none : b->second.tensor->spec.shape;
    if (a_shape.size() != 2 || b_shape.size() != 2 || a_shape[0] != b_shape[1] || a_shape[0] < 1 || a_shape[1] < 1 || b_shape[0] < 1) {
      return InvalidArgument("layer '{}': expected lora_A [r, in] and lora_B [out, r], got [{}] and [{}]", layer, fmt::join(a_shape, ", "), fmt::join(b_shape, ", "));
    }
    AdapterPair pair{.layer = layer, .in = static_cast<size_t>(a_shape[1]), .out = static_cast<size_t>(b_shape[0]), .rank = static_cast<size_t>(a_shape[0])};
    pair.triplets = found.contains(AdapterPart::kE);
    const AdapterShape shape{.layer = layer, .in = a_shape[1], .out = b_shape[0], .rank = a_shape[0], .triplets = pair.triplets};
    const std::vector<AdapterTensor> wanted = AdapterTensors(mode, shape, model.float_dtype());
    for (const auto& [part, spec] : wanted) {
      const PlacedTensor* got = model.Find(spec.name);
      if (got == nullptr) return InvalidArgument("adapters: {} needs the tensor '{}'", AdapterModeName(mode), spec.name);
      if (!(got->spec == spec)) {
        return InvalidArgument("tensor '{}': adapters: {} needs it as a {} of [{}], got a {} of [{}]", spec.name, AdapterModeName(mode), TensorKindName(spec.kind),
                               fmt::join(spec.shape, ", "), TensorKindName(got->spec.kind), fmt::join(got->spec.shape, ", "));
      }
    }
    if (wanted.size() != found.size()) return InvalidArgument("layer '{}': {} has {} tensors, got {}", layer, AdapterModeName(mode), wanted.size(), found.size());
    const auto position_of = [&found](AdapterPart part) {
      const auto at = found.find(part);
      return at == found.end() ? 0 : at->second.position;
    };
    pair.a = position_of(AdapterPart::kA);
    pair.b = position_of(AdapterPart::kB);
    pair.r = position_of(AdapterPart::kR);
    pair.residual = position_of(AdapterPart::kResidual);
    pair.e = position_of(AdapterPart::kE);
    pair.importance = position_of(AdapterPart::kImportance);
    pair.mask = position_of(AdapterPart::kMask);
    pairs.push_back(std::move(pair));
  }
  if (pairs.empty()) return InvalidArgument("the model has no adapters");
  return pairs;
}

absl::StatusOr<TensorLayout> AdapterUpdateLayout(AdapterMode mode, const TensorLayout& model) {
  TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(mode, model));
  std::vector<TensorSpec> specs;
  if (mode == AdapterMode::kRoLora) {
    for (const AdapterPair& pair : pairs) {
      specs.push_back({.name = fmt::format("{}{}{}", kPrefix, pair.layer, kLive), .shape = {static_cast<int64_t>(LiveRoom(pair))}, .dtype = model.float_dtype(),
                       .kind = TensorKind::kTrainable});
    }
  } else {
    for (const PlacedTensor& tensor : model.tensors()) {
      if (tensor.spec.kind == TensorKind::kTrainable) specs.push_back(tensor.spec);
    }
  }
  return TensorLayout::Create(std::move(specs));
}

std::vector<std::byte> PackLive(const TensorLayout& model, std::span<const AdapterPair> pairs, bool moves_b, std::span<const std::byte> flat) {
  const size_t each = DTypeBytes(model.float_dtype());
  size_t room = 0;
  for (const AdapterPair& pair : pairs) room += LiveRoom(pair);
  std::vector<std::byte> live(room * each);
  std::byte* to = live.data();
  for (const AdapterPair& pair : pairs) {
    std::memcpy(to, flat.data() + (moves_b ? pair.b : pair.a) * each, LiveCount(pair, moves_b) * each);
    to += LiveRoom(pair) * each;
  }
  return live;
}

}  // namespace tributary
