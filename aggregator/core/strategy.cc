#include "aggregator/core/strategy.h"

#include <algorithm>
#include <cmath>

#include "aggregator/core/adapters.h"
#include "common/state_version.h"
#include "common/suggest.h"

namespace tributary::aggregator {

#define TRIB_STRATEGY(name, Stem, trait, help, source, down, up)                        \
  absl::StatusOr<std::unique_ptr<Strategy>> Make##Stem(const StrategySpec& spec, const LocalSpec& local); \
  std::vector<ParamInfo> Stem##Params();
#include "aggregator/core/strategies/strategies.def"
#undef TRIB_STRATEGY

namespace {

using Make = absl::StatusOr<std::unique_ptr<Strategy>> (*)(const StrategySpec& spec, const LocalSpec& local);
using Params = std::vector<ParamInfo> (*)();

// What every strategy has: read here, not by each of them.
ParamInfo BuffersParam() {
  return {.name = "buffers", .default_value = "average", .range = "average|local",
          .help = "the model's buffers: the weighted mean of the clients' values, or each client keeps its own and the model's stay as they are"};
}

ParamInfo ExpertWeightsParam() {
  return {.name = "expert_weights", .default_value = "mean", .range = "mean|tokens",
          .help = "experts of a mixture: averaged like all tensors, or each client's weighted by the share of its tokens that went to the expert"};
}

template <Make make>
absl::StatusOr<std::unique_ptr<Strategy>> MakeWithCommon(const StrategySpec& spec, const LocalSpec& local) {
  const ParamInfo info = BuffersParam();
  StrategySpec own = spec;
  const auto given = own.params.extract(info.name);
  const std::string buffers = given.empty() ? info.default_value : given.mapped();
  if (buffers != "average" && buffers != "local") {
    return InvalidArgument("strategy '{}': {} must be in {}, got '{}'", spec.name, info.name, info.range, buffers);
  }
  const ParamInfo experts = ExpertWeightsParam();
  const auto experts_given = own.params.extract(experts.name);
  const std::string expert_weights = experts_given.empty() ? experts.default_value : experts_given.mapped();
  if (expert_weights != "mean" && expert_weights != "tokens") {
    return InvalidArgument("strategy '{}': {} must be in {}, got '{}'", spec.name, experts.name, experts.range, expert_weights);
  }
  const auto adapters = own.params.extract(AdaptersParam().name);
  AdapterMode mode = AdapterMode::kNone;
  if (!adapters.empty()) {
    const absl::StatusOr<AdapterMode> named = AdapterModeOf(adapters.mapped());
    if (!named.ok()) return InvalidArgument("strategy '{}': {}", spec.name, MessageOf(named.status()));
    mode = *named;
  }
  TRIB_ASSIGN_OR_RETURN(std::unique_ptr<Strategy> strategy, make(own, local));
  if (mode != AdapterMode::kNone) {
    if (buffers == "local") {
      return InvalidArgument("strategy '{}': buffers: with adapters: {} they are the server's and never go up; expected average, got local", spec.name, AdapterModeName(mode));
    }
    TRIB_ASSIGN_OR_RETURN(strategy, WithAdapters(mode, own, std::move(strategy)));
  }
  strategy->set_local_buffers(buffers == "local");
  strategy->set_weighs_experts(expert_weights == "tokens");
  return strategy;
}

template <Params params>
std::vector<ParamInfo> ParamsWithCommon() {
  std::vector<ParamInfo> all = params();
  all.push_back(BuffersParam());
  all.push_back(AdaptersParam());
  all.push_back(ExpertWeightsParam());
  return all;
}

constexpr StrategyEntry kStrategies[] = {
#define TRIB_STRATEGY(name, Stem, trait, help, source, down, up) \
  {#name, MakeWithCommon<Make##Stem>, ParamsWithCommon<Stem##Params>, StrategyTrait::trait, help, source, down, up},
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

absl::StatusOr<TensorLayout> Strategy::UpdateLayout(const TensorLayout& model) const {
  if (adapters_ == AdapterMode::kNone) return WithGroups(model, update_groups());
  TRIB_ASSIGN_OR_RETURN(const TensorLayout travelling, AdapterUpdateLayout(adapters_, model));
  return WithGroups(travelling, update_groups());
}

absl::StatusOr<std::unique_ptr<Strategy>> StrategyOf(const JobSpec& job) {
  TRIB_ASSIGN_OR_RETURN(std::unique_ptr<Strategy> strategy, MakeStrategy(job.strategy, job.local));
  strategy->set_job(job);
  if (job.model.adapter.triplets()) strategy->set_ranks(RankSchedule::Of(job));
  return strategy;
}

bool ServesNodes(const Strategy& strategy) {
  return strategy.synchronous() && strategy.whole_reducer() == nullptr && strategy.update_groups().size() == 1 && strategy.version_vectors().empty() &&
         strategy.scalars().empty() && !strategy.weights().keeps_clients();
}

absl::Status CheckScalars(const Strategy& strategy, std::span<const ScalarInfo> wanted, const Scalars& scalars) {
  for (const auto& [name, value] : scalars) {
    if (name == kStateVersion && strategy.client_state() != ClientStateKind::kNone) {
      if (std::isfinite(value) && value >= 0 && value == std::floor(value)) continue;
      return InvalidArgument("scalar '{}': expected a version, got {}", name, value);
    }
    const auto info = std::find_if(wanted.begin(), wanted.end(), [&](const ScalarInfo& one) { return one.name == name; });
    if (info == wanted.end()) return InvalidArgument("scalar '{}': the job's strategy has none of this name", name);
    const bool above = info->low_open ? value > info->low : value >= info->low;
    if (info->binary && value != 0 && value != 1) return InvalidArgument("scalar '{}': expected 0 or 1, got {}", name, value);
    if (!std::isfinite(value) || !above) {
      return InvalidArgument("scalar '{}': expected a finite number {} {}, got {}", name, info->low_open ? ">" : ">=", info->low, value);
    }
  }
  for (const ScalarInfo& info : wanted) {
    if (!scalars.contains(info.name)) return InvalidArgument("scalar '{}' is missing: {}", info.name, info.help);
  }
  return absl::OkStatus();
}

absl::Status CheckClientState(const Strategy& strategy, const Scalars& scalars, uint64_t expected) {
  if (strategy.client_state() == ClientStateKind::kNone) return absl::OkStatus();
  const auto said = scalars.find(kStateVersion);
  if (said == scalars.end()) return InvalidArgument("scalar '{}' is missing: the version whose client state the update starts from", kStateVersion);
  if (said->second == 0 || said->second == static_cast<double>(expected)) return absl::OkStatus();
  return InvalidArgument("the update starts from its client's state of version {}; expected that of version {}, its last counted update, or none", said->second,
                         expected);
}

bool LostClientState(const Strategy& strategy, const Scalars& scalars, uint64_t expected) {
  if (strategy.client_state() == ClientStateKind::kNone || expected == 0) return false;
  const auto said = scalars.find(kStateVersion);
  return said != scalars.end() && said->second == 0;
}

absl::Status BeginClientsAnew(const Strategy& strategy, const TensorLayout& layout, std::span<const std::byte> model, StrategyState* state) {
  for (const std::string& name : strategy.server_step().state_vectors()) {
    if (strategy.server_step().goes_with_clients(name)) state->vectors.erase(name);
  }
  return PrepareState(strategy, layout, model, state);
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
