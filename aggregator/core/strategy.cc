#include "aggregator/core/strategy.h"

#include <algorithm>
#include <cmath>

#include "common/suggest.h"

namespace tributary::aggregator {

#define TRIB_STRATEGY(name, Stem, trait, help, source, down, up)                        \
  absl::StatusOr<std::unique_ptr<Strategy>> Make##Stem(const StrategySpec& spec, const LocalSpec& local); \
  std::vector<ParamInfo> Stem##Params();
#include "aggregator/core/strategies/strategies.def"
#undef TRIB_STRATEGY

namespace {
constexpr StrategyEntry kStrategies[] = {
#define TRIB_STRATEGY(name, Stem, trait, help, source, down, up) {#name, Make##Stem, Stem##Params, StrategyTrait::trait, help, source, down, up},
#include "aggregator/core/strategies/strategies.def"
#undef TRIB_STRATEGY
};
}  // namespace

std::span<const StrategyEntry> Strategies() { return kStrategies; }

const StrategyEntry* FindStrategy(std::string_view name) {
  for (const StrategyEntry& entry : kStrategies) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

absl::StatusOr<std::unique_ptr<Strategy>> MakeStrategy(const StrategySpec& spec, const LocalSpec& local) {
  if (const StrategyEntry* entry = FindStrategy(spec.name)) return entry->make(spec, local);
  std::vector<std::string> known;
  for (const StrategyEntry& entry : kStrategies) known.emplace_back(entry.name);
  return NotFound("no strategy '{}'{}; known: {}", spec.name, DidYouMean(spec.name, known), fmt::join(known, ", "));
}

bool ServesNodes(const Strategy& strategy) {
  return strategy.synchronous() && strategy.whole_reducer() == nullptr && strategy.update_groups().size() == 1 && strategy.version_vectors().empty() &&
         strategy.scalars().empty() && !strategy.weights().keeps_clients();
}

absl::Status CheckScalars(const Strategy& strategy, const Scalars& scalars) {
  const std::vector<ScalarInfo> wanted = strategy.scalars();
  for (const auto& [name, value] : scalars) {
    const auto info = std::find_if(wanted.begin(), wanted.end(), [&](const ScalarInfo& one) { return one.name == name; });
    if (info == wanted.end()) return InvalidArgument("scalar '{}': the job's strategy has none of this name", name);
    const bool above = info->low_open ? value > info->low : value >= info->low;
    if (!std::isfinite(value) || !above) {
      return InvalidArgument("scalar '{}': expected a finite number {} {}, got {}", name, info->low_open ? ">" : ">=", info->low, value);
    }
  }
  for (const ScalarInfo& info : wanted) {
    if (!scalars.contains(info.name)) return InvalidArgument("scalar '{}' is missing: {}", info.name, info.help);
  }
  return absl::OkStatus();
}

absl::Status PrepareState(const Strategy& strategy, const TensorLayout& layout, std::span<const std::byte> model, StrategyState* state) {
  TRIB_RETURN_IF_ERROR(PrepareState(strategy.server_step(), layout, model, state));
  if (strategy.whole_reducer() == nullptr) return absl::OkStatus();
  for (const std::string& name : strategy.whole_reducer()->state_vectors()) {
    const auto [it, fresh] = state->vectors.try_emplace(name);
    if (fresh) it->second.assign(layout.trainable_count(), 0.0);
    if (it->second.size() != layout.trainable_count()) {
      return InvalidArgument("strategy vector '{}': expected {} elements, got {}", name, layout.trainable_count(), it->second.size());
    }
  }
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
