#include "common/moe_spec.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <map>
#include <utility>

#include "common/named_params.h"

namespace tributary {
namespace {

constexpr std::string_view kExperts = ".experts.";
constexpr size_t kMaxExpertNumber = 1 << 20;

struct ExpertName {
  std::string layer;
  size_t expert = 0;
};

std::optional<ExpertName> ParseName(const std::string& name) {
  const size_t at = name.find(kExperts);
  if (at == std::string::npos || at == 0) return std::nullopt;
  const size_t begin = at + kExperts.size();
  const size_t end = name.find('.', begin);
  uint64_t number = 0;
  if (end == std::string::npos || !absl::SimpleAtoi(name.substr(begin, end - begin), &number) || number > kMaxExpertNumber) return std::nullopt;
  return ExpertName{.layer = name.substr(0, at), .expert = number};
}

// Parameters of a group, "router.step" as "step".
ParamMap GroupOf(const ParamMap& params, const std::string& group) {
  ParamMap inner;
  for (const auto& [key, value] : params) {
    if (key.rfind(group + ".", 0) == 0 && key != group + ".name") inner[key.substr(group.size() + 1)] = value;
  }
  return inner;
}

std::string Value(const ParamMap& params, const std::string& key, const std::string& otherwise) {
  const auto at = params.find(key);
  return at == params.end() ? otherwise : at->second;
}

absl::StatusOr<double> Ema(const ParamMap& params, const std::string& key) {
  double ema = 0;
  const std::string text = Value(params, key, "0.9");
  if (!absl::SimpleAtod(text, &ema) || !(ema >= 0 && ema < 1)) return InvalidArgument("model.params.{}: expected a number in [0, 1), got '{}'", key, text);
  return ema;
}

}  // namespace

MoePlaces FindExperts(const TensorLayout& layout) {
  std::map<std::string, std::vector<bool>> numbers;  // of each candidate
  std::vector<std::string> order;
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (tensor.spec.kind != TensorKind::kTrainable) continue;
    const std::optional<ExpertName> name = ParseName(tensor.spec.name);
    if (!name) continue;
    auto [at, fresh] = numbers.try_emplace(name->layer);
    if (fresh) order.push_back(name->layer);
    if (name->expert >= at->second.size()) at->second.resize(name->expert + 1);
    at->second[name->expert] = true;
  }
  MoePlaces places;
  std::map<std::string, size_t> index;
  for (const std::string& layer : order) {
    const std::vector<bool>& seen = numbers.at(layer);
    if (seen.size() < 2 || std::find(seen.begin(), seen.end(), false) != seen.end()) continue;  // named so for another reason
    index[layer] = places.layers.size();
    MoeLayerPlace place{.name = layer, .experts = seen.size(), .bias = std::nullopt};
    const PlacedTensor* bias = layout.Find(layer + ".gate.e_score_correction_bias");
    if (bias != nullptr && bias->spec.kind == TensorKind::kServerOwned && bias->elements == seen.size()) {
      place.bias = bias->offset_bytes / DTypeBytes(layout.float_dtype());
    }
    places.layers.push_back(std::move(place));
  }
  if (places.layers.empty()) return places;
  size_t end = 0;
  for (const PlacedTensor& tensor : layout.tensors()) {
    if (tensor.spec.kind != TensorKind::kTrainable) continue;
    end += tensor.elements;
    const std::optional<ExpertName> name = ParseName(tensor.spec.name);
    const bool known = name && index.contains(name->layer);
    const std::optional<size_t> layer = known ? std::optional(index.at(name->layer)) : std::nullopt;
    const size_t expert = known ? name->expert : 0;
    if (!places.runs.empty() && places.runs.back().layer == layer && places.runs.back().expert == expert) {
      places.runs.back().end = end;
    } else {
      places.runs.push_back({.end = end, .layer = layer, .expert = expert});
    }
  }
  return places;
}

absl::StatusOr<MoeSpec> MoeSpec::Of(const ModelSpec& model) {
  MoeSpec spec;
  const ParamMap& params = model.params;
  const std::string router = Value(params, "router.name", Value(params, "router", "none"));
  if (const auto top_k = params.find("top_k"); top_k != params.end()) {
    if (!absl::SimpleAtoi(top_k->second, &spec.top_k) || spec.top_k < 1) {
      return InvalidArgument("model.params.top_k: expected an integer of at least 1, got '{}'", top_k->second);
    }
  }
  if (router == "expert_choice") spec.top_k = 0;
  if (router == "alf") {
    TRIB_ASSIGN_OR_RETURN(const NamedParams named, NamedParams::Create("router 'alf'", TRIB_ALF_DEFAULTS, GroupOf(params, "router")));
    TRIB_ASSIGN_OR_RETURN(spec.bias, ExpertBiasRule::Of(named));
  }
  if (router == "quantile") {
    TRIB_ASSIGN_OR_RETURN(const NamedParams named, NamedParams::Create("router 'quantile'", TRIB_QUANTILE_DEFAULTS, GroupOf(params, "router")));
    TRIB_ASSIGN_OR_RETURN(const ExpertQuantileRule rule, ExpertQuantileRule::Of(named));
    if (rule.global) spec.quantile = rule;
  }
  double lbl = 0;
  const bool wanted = absl::SimpleAtod(Value(params, "aux.lbl", "0"), &lbl) && lbl > 0;
  if (router == "global_lbl") {
    spec.global_load = true;
    TRIB_ASSIGN_OR_RETURN(spec.load_ema, Ema(params, "router.ema"));
  } else if (wanted && Value(params, "aux.lbl_scope", "local") == "global") {
    spec.global_load = true;
    TRIB_ASSIGN_OR_RETURN(spec.load_ema, Ema(params, "aux.lbl_ema"));
  }
  return spec;
}

}  // namespace tributary
