#include "aggregator/core/strategy.h"

#include "common/suggest.h"

namespace tributary::aggregator {

#define TRIB_STRATEGY(name, Stem, trait, help, down, up)                        \
  absl::StatusOr<std::unique_ptr<Strategy>> Make##Stem(const StrategySpec& spec); \
  std::vector<ParamInfo> Stem##Params();
#include "aggregator/core/strategies/strategies.def"
#undef TRIB_STRATEGY

namespace {
constexpr StrategyEntry kStrategies[] = {
#define TRIB_STRATEGY(name, Stem, trait, help, down, up) {#name, Make##Stem, Stem##Params, StrategyTrait::trait, help, down, up},
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

absl::StatusOr<std::unique_ptr<Strategy>> MakeStrategy(const StrategySpec& spec) {
  if (const StrategyEntry* entry = FindStrategy(spec.name)) return entry->make(spec);
  std::vector<std::string> known;
  for (const StrategyEntry& entry : kStrategies) known.emplace_back(entry.name);
  return NotFound("no strategy '{}'{}; known: {}", spec.name, DidYouMean(spec.name, known), fmt::join(known, ", "));
}

}  // namespace tributary::aggregator
