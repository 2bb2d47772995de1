#include "common/privacy_spec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "common/suggest.h"

namespace tributary {
namespace {

constexpr double kMaxNoiseMultiplier = 1e6;

template <typename InRange>
void ReadDouble(YamlReader& map, std::string_view key, double* out, std::string_view range, InRange in_range) {
  map.Double(key, out);
  if (map.Has(key) && !in_range(*out)) map.Fail(key, fmt::format("expected a number {}, got {}", range, *out));
}

void ReadChoice(YamlReader& map, std::string_view key, std::string* out, const std::vector<std::string>& known) {
  map.String(key, out);
  for (const std::string& word : known) {
    if (*out == word) return;
  }
  map.Fail(key, fmt::format("expected {}, got '{}'{}", fmt::join(known, " or "), *out, DidYouMean(*out, known)));
}

void ReadAdaptiveClip(YamlReader& top, AdaptiveClipSpec* spec) {
  YamlReader map = top.Map("adaptive_clip", &spec->enabled);
  ReadDouble(map, "quantile", &spec->quantile, "in (0, 1)", [](double v) { return v > 0 && v < 1; });
  ReadDouble(map, "rate", &spec->rate, "in (0, 10]", [](double v) { return v > 0 && v <= 10; });
  ReadDouble(map, "count_stddev", &spec->count_stddev, "in (0, 1e9]", [](double v) { return v > 0 && v <= 1e9; });
}

}  // namespace

std::string_view NoisePlacementName(NoisePlacement placement) {
  switch (placement) {
    case NoisePlacement::kCentral:
      return "central";
    case NoisePlacement::kDistributed:
      return "distributed";
    case NoisePlacement::kLocal:
      break;
  }
  return "local";
}

void ReadPrivacy(YamlReader& top, std::string_view key, bool poisson, PrivacySpec* spec) {
  bool present = false;
  YamlReader map = top.Map(key, &present);
  if (!present) return;
  spec->enabled = true;
  std::string mechanism = "gaussian", placement = "central", adjacency;
  ReadChoice(map, "mechanism", &mechanism, {"gaussian"});
  ReadChoice(map, "placement", &placement, {"central", "distributed", "local"});
  for (const NoisePlacement known : {NoisePlacement::kDistributed, NoisePlacement::kLocal}) {
    if (placement == NoisePlacementName(known)) spec->placement = known;
  }
  const auto positive = [](double v) { return v > 0 && v <= 1e9; };
  ReadDouble(map, "clip", &spec->clip, "in (0, 1e9]", positive);
  if (!map.Has("clip")) map.Fail("clip", "required: without a bound on an update's norm no noise protects it");
  ReadDouble(map, "noise_multiplier", &spec->noise_multiplier, "in [0, 1e6]", [](double v) { return v >= 0 && v <= kMaxNoiseMultiplier; });
  ReadDouble(map, "epsilon", &spec->epsilon, "in (0, 1e9]", positive);
  // Both: the aggregator has found the multiplier.
  if (!map.Has("noise_multiplier") && !map.Has("epsilon")) map.Fail("noise_multiplier", "expected noise_multiplier, or epsilon to find it by");
  if (map.Has("noise_multiplier") && spec->noise_multiplier == 0 && (map.Has("epsilon") || map.Has("epsilon_budget"))) {
    map.Fail("noise_multiplier", "without noise epsilon is infinite: expected a number greater than 0 beside epsilon or epsilon_budget, got 0");
  }
  ReadDouble(map, "delta", &spec->delta, "in (0, 1)", [](double v) { return v > 0 && v < 1; });
  if (!map.Has("delta")) map.Fail("delta", "required: a number in (0, 1), well under one over the number of clients");
  ReadDouble(map, "epsilon_budget", &spec->epsilon_budget, "in (0, 1e9]", positive);
  map.Bool("insecure_seed", &spec->insecure_seed);
  ReadAdaptiveClip(map, &spec->adaptive);
  if (spec->adaptive.enabled && spec->placement != NoisePlacement::kCentral) {
    map.Fail("adaptive_clip", fmt::format("whether an update was within the norm goes to the server without noise: expected placement central, got {}", placement));
  }
  spec->replace = !poisson;
  if (map.Has("adjacency")) {
    ReadChoice(map, "adjacency", &adjacency, {"add_remove", "replace"});
    const std::string fitting = poisson ? "add_remove" : "replace";
    if (adjacency != fitting) {
      map.Fail("adjacency", fmt::format("cohort.sampling {} is accounted for {}, not {}: with a fixed size one client more means one less",
                                        poisson ? "poisson" : "fixed", fitting, adjacency));
    }
  }
  if (spec->placement == NoisePlacement::kLocal && poisson) {
    map.Fail("placement", "local noise protects an update by itself: cohort.sampling poisson adds nothing to it; use sampling fixed");
  }
}

std::string CanonicalPrivacy(const PrivacySpec& spec) {
  std::string text = fmt::format("{{mechanism: gaussian, placement: {}, clip: {}", NoisePlacementName(spec.placement), spec.clip);
  if (spec.noise_multiplier > 0 || spec.epsilon == 0) text += fmt::format(", noise_multiplier: {}", spec.noise_multiplier);
  if (spec.epsilon > 0) text += fmt::format(", epsilon: {}", spec.epsilon);
  text += fmt::format(", delta: {}", spec.delta);
  if (spec.epsilon_budget > 0) text += fmt::format(", epsilon_budget: {}", spec.epsilon_budget);
  if (spec.adaptive.enabled) {
    text += fmt::format(", adaptive_clip: {{quantile: {}, rate: {}", spec.adaptive.quantile, spec.adaptive.rate);
    if (spec.adaptive.count_stddev > 0) text += fmt::format(", count_stddev: {}", spec.adaptive.count_stddev);
    text += "}";
  }
  return text + fmt::format(", adjacency: {}, insecure_seed: {}}}", spec.replace ? "replace" : "add_remove", spec.insecure_seed);
}

}  // namespace tributary
