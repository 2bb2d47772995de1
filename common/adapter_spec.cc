#include "common/adapter_spec.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>

#include "common/suggest.h"

namespace tributary {
namespace {

constexpr int64_t kMaxRank = 4096;
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight", kR = ".lora_R.weight", kResidual = ".base_layer.residual";
constexpr std::string_view kLive = ".lora_live";
constexpr std::array<std::string_view, 8> kModes = {"none", "fedit", "ffa", "rolora", "flora", "flexlora", "fedex", "fedsb"};

// A list of ranks, or one.
void ReadRank(YamlReader& map, AdapterSpec* spec) {
  const auto in_range = [](int64_t rank) { return rank >= 1 && rank <= kMaxRank; };
  if (!map.Has("rank") || map.IsScalar("rank")) {
    map.Int("rank", &spec->rank);
    if (!in_range(spec->rank)) map.Fail("rank", fmt::format("expected 1 to {}, got {}", kMaxRank, spec->rank));
    return;
  }
  std::vector<std::string> texts;
  map.StringList("rank", &texts);
  for (const std::string& text : texts) {
    int64_t rank = 0;
    if (!absl::SimpleAtoi(text, &rank) || !in_range(rank)) map.Fail("rank", fmt::format("expected integers from 1 to {}, got '{}'", kMaxRank, text));
    spec->client_ranks.push_back(rank);
  }
  if (texts.empty()) map.Fail("rank", "expected a rank, or a list of one for each client, got an empty list");
  if (!texts.empty()) spec->rank = *std::max_element(spec->client_ranks.begin(), spec->client_ranks.end());
}

bool Trains(AdapterMode mode, std::string_view suffix) {
  if (suffix == kR) return true;
  if (suffix == kResidual || mode == AdapterMode::kFedSb) return false;
  return suffix == kB || mode != AdapterMode::kFfa;
}

struct Named {
  std::string layer;
  std::string_view suffix;
};

absl::StatusOr<Named> Split(const std::string& name) {
  if (name.starts_with(kPrefix)) {
    for (const std::string_view suffix : {kA, kB, kR, kResidual}) {
      if (name.ends_with(suffix) && name.size() > kPrefix.size() + suffix.size()) {
        return Named{name.substr(kPrefix.size(), name.size() - kPrefix.size() - suffix.size()), suffix};
      }
    }
  }
  return InvalidArgument("tensor '{}': expected one of an adapter, {}<layer>{} or the like", name, kPrefix, kA);
}

}  // namespace

double AdapterSpec::Scale() const {
  const auto r = static_cast<double>(rank);
  return alpha / (rank_stabilised ? std::sqrt(r) : r);
}

absl::StatusOr<int64_t> AdapterSpec::RankOf(int64_t client) const {
  if (client_ranks.empty()) return rank;
  const auto index = static_cast<size_t>(client);
  if (index >= client_ranks.size()) return InvalidArgument("model.adapter: rank has {} values, client {} has none", client_ranks.size(), client);
  return client_ranks[index];
}

void ReadAdapter(YamlReader& top, std::string_view key, AdapterSpec* spec) {
  bool present = false;
  YamlReader map = top.Map(key, &present);
  if (!present) return;
  spec->kind = "lora";
  map.String("kind", &spec->kind);
  if (spec->kind != "lora") map.Fail("kind", fmt::format("expected lora, got '{}'", spec->kind));
  ReadRank(map, spec);
  map.Double("alpha", &spec->alpha);
  if (!(spec->alpha > 0 && spec->alpha <= 1e6)) map.Fail("alpha", fmt::format("expected a number in (0, 1e6], got {}", spec->alpha));
  map.StringList("targets", &spec->targets, YamlReader::kRequired);
  if (map.Has("targets") && spec->targets.empty()) map.Fail("targets", "expected names of linear layers, got an empty list");
  for (const std::string& target : spec->targets) {
    const bool plain = std::all_of(target.begin(), target.end(), [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-'; });
    if (target.empty() || !plain) map.Fail("targets", fmt::format("expected names of linear layers, got '{}'", target));
  }
  map.Double("dropout", &spec->dropout);
  if (!(spec->dropout >= 0 && spec->dropout < 1)) map.Fail("dropout", fmt::format("expected a number in [0, 1), got {}", spec->dropout));
  map.Bool("rank_stabilised", &spec->rank_stabilised);
}

std::string CanonicalAdapter(const AdapterSpec& spec) {
  std::string targets;
  for (const std::string& target : spec.targets) targets += (targets.empty() ? "\"" : ", \"") + target + "\"";
  const std::string rank = spec.client_ranks.empty() ? fmt::format("{}", spec.rank) : fmt::format("[{}]", fmt::join(spec.client_ranks, ", "));
  return fmt::format("{{kind: {}, rank: {}, alpha: {}, targets: [{}], dropout: {}, rank_stabilised: {}}}", spec.kind, rank, spec.alpha, targets,
                     spec.dropout, spec.rank_stabilised);
}

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

std::vector<TensorSpec> AdapterTensors(AdapterMode mode, const std::string& layer, int64_t in, int64_t out, int64_t rank, DType dtype) {
  std::vector<TensorSpec> tensors;
  const auto add = [&](std::string_view suffix, std::vector<int64_t> shape) {
    tensors.push_back({.name = fmt::format("{}{}{}", kPrefix, layer, suffix), .shape = std::move(shape), .dtype = dtype,
                       .kind = Trains(mode, suffix) ? TensorKind::kTrainable : TensorKind::kBuffer});
  };
  add(kA, {rank, in});
  add(kB, {out, rank});
  if (mode == AdapterMode::kFedSb) add(kR, {rank, rank});
  if (NeedsResidual(mode)) add(kResidual, {out, in});
  return tensors;
}

absl::StatusOr<std::vector<AdapterPair>> FindAdapters(AdapterMode mode, const TensorLayout& model) {
  struct Found {
    const PlacedTensor* tensor = nullptr;
    size_t position = 0;
  };
  std::map<std::string, std::map<std::string_view, Found>> layers;
  std::vector<std::string> order;
  size_t position = 0;
  for (const PlacedTensor& tensor : model.tensors()) {
    TRIB_ASSIGN_OR_RETURN(const Named named, Split(tensor.spec.name));
    if (!layers.contains(named.layer)) order.push_back(named.layer);
    layers[named.layer][named.suffix] = {&tensor, position};
    position += tensor.elements;
  }
  std::vector<AdapterPair> pairs;
  for (const std::string& layer : order) {
    const std::map<std::string_view, Found>& found = layers.at(layer);
    const auto a = found.find(kA), b = found.find(kB);
    const std::vector<int64_t> none;
    const std::vector<int64_t>& a_shape = a == found.end() ? none : a->second.tensor->spec.shape;
    const std::vector<int64_t>& b_shape = b == found.end() ? none : b->second.tensor->spec.shape;
    if (a_shape.size() != 2 || b_shape.size() != 2 || a_shape[0] != b_shape[1] || a_shape[0] < 1 || a_shape[1] < 1 || b_shape[0] < 1) {
      return InvalidArgument("layer '{}': expected lora_A [r, in] and lora_B [out, r], got [{}] and [{}]", layer, fmt::join(a_shape, ", "), fmt::join(b_shape, ", "));
    }
    AdapterPair pair{.layer = layer, .in = static_cast<size_t>(a_shape[1]), .out = static_cast<size_t>(b_shape[0]), .rank = static_cast<size_t>(a_shape[0])};
    const std::vector<TensorSpec> wanted = AdapterTensors(mode, layer, a_shape[1], b_shape[0], a_shape[0], model.float_dtype());
    for (const TensorSpec& spec : wanted) {
      const PlacedTensor* got = model.Find(spec.name);
      if (got == nullptr) return InvalidArgument("adapters: {} needs the tensor '{}'", AdapterModeName(mode), spec.name);
      if (!(got->spec == spec)) {
        return InvalidArgument("tensor '{}': adapters: {} needs it as a {} of [{}], got a {} of [{}]", spec.name, AdapterModeName(mode), TensorKindName(spec.kind),
                               fmt::join(spec.shape, ", "), TensorKindName(got->spec.kind), fmt::join(got->spec.shape, ", "));
      }
    }
    if (wanted.size() != found.size()) return InvalidArgument("layer '{}': {} has {} tensors, got {}", layer, AdapterModeName(mode), wanted.size(), found.size());
    pair.a = a->second.position;
    pair.b = b->second.position;
    if (const auto r = found.find(kR); r != found.end()) pair.r = r->second.position;
    if (const auto residual = found.find(kResidual); residual != found.end()) pair.residual = residual->second.position;
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
