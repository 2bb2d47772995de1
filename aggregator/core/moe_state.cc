#include "aggregator/core/moe_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "aggregator/core/server_step.h"
#include "aggregator/core/whole_reducer.h"

namespace tributary::aggregator {
namespace {

MoeStats SumOf(std::span<const RoundContributor> contributors) {
  MoeStats sum;
  for (const RoundContributor& contributor : contributors) {
    if (!contributor.moe.empty()) AddStats(contributor.moe, &sum);
  }
  return sum;
}

double PairsOf(const MoeLayerStats& layer) {
  double pairs = 0;
  for (const int64_t count : layer.counts) pairs += static_cast<double>(count);
  return pairs;
}

// r of each expert of a layer.
double Factor(const MoeLayerStats& layer, size_t expert) {
  const double pairs = PairsOf(layer);
  return pairs > 0 ? static_cast<double>(layer.counts[expert]) * static_cast<double>(layer.counts.size()) / pairs : 0;
}

// Experts are weighted where the step is made of sums over the model's own elements, and of more than one update.
absl::Status CheckWeighted(const JobSpec& spec, const Strategy& strategy) {
  const std::string& name = spec.strategy.name;
  const std::string reason = strategy.whole_reducer() != nullptr               ? "keeps every update whole, so that there is no sum to weight"
                             : strategy.update_groups().size() != 1            ? "sums a second vector over the same elements"
                             : strategy.sends_values()                         ? "takes values of models, not differences"
                             : strategy.adapters() != AdapterMode::kNone       ? "combines adapters, not experts"
                             : strategy.server_step().needs_base()             ? "commits single updates, whose weight cancels out"
                                                                               : "";
  if (reason.empty()) return absl::OkStatus();
  return InvalidArgument("strategy.expert_weights: strategy '{}' {}; expected mean, got tokens", name, reason);
}

struct Measures {
  double max_vio = 0, client_max_vio = 0, specialisation = 0, effective_experts = 0, balance = 0;
};

Measures MeasuresOf(size_t l, const MoeStats& sum, std::span<const RoundContributor> contributors) {
  const MoeLayerStats& all = sum[l];
  Measures out{.max_vio = MaxVio(all.counts), .effective_experts = EffectiveExperts(all.counts)};
  std::map<std::string, std::vector<int64_t>> of_client;
  for (const RoundContributor& contributor : contributors) {
    if (contributor.moe.empty()) continue;
    std::vector<int64_t>& counts = of_client[contributor.key.client];
    counts.resize(all.counts.size());
    for (size_t j = 0; j < counts.size(); ++j) counts[j] += contributor.moe[l].counts[j];
  }
  std::vector<std::vector<int64_t>> clients;
  for (auto& [client, counts] : of_client) {
    out.client_max_vio += MaxVio(counts) / static_cast<double>(of_client.size());
    clients.push_back(std::move(counts));
  }
  out.specialisation = Specialisation(clients);
  const double pairs = PairsOf(all), tokens = static_cast<double>(all.tokens);
  for (size_t j = 0; j < all.counts.size() && pairs > 0; ++j) {
    out.balance += static_cast<double>(all.counts.size()) * static_cast<double>(all.counts[j]) / pairs * all.prob_sum[j] / tokens;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const MoeState>> MoeState::Create(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model) {
  MoeSpec wanted;
  if (!spec.model.zoo.empty()) {
    TRIB_ASSIGN_OR_RETURN(wanted, MoeSpec::Of(spec.model));
  }
  MoePlaces places = FindExperts(model);
  const std::string needed_by = strategy.weighs_experts() ? "strategy.expert_weights: tokens"
                                : wanted.bias             ? "model.params.router: alf"
                                : wanted.quantile         ? "model.params.router: quantile of scope global"
                                : wanted.global_load      ? "a balance loss over all clients (global)"
                                                          : "";
  if (!needed_by.empty() && places.layers.empty()) {
    return InvalidArgument("{}: it counts the tokens of experts, and the model has no tensors '<layer>.experts.<e>.…'", needed_by);
  }
  if (!needed_by.empty() && !SendsMoeStats(spec)) {
    return InvalidArgument("{}: it needs every client's counts of tokens, which are data about the client and not sent in a job with privacy", needed_by);
  }
  if (places.layers.empty()) return nullptr;
  if (strategy.weighs_experts()) TRIB_RETURN_IF_ERROR(CheckWeighted(spec, strategy));
  size_t margins = 0;
  for (const MoeLayerPlace& layer : places.layers) {
    if ((wanted.bias || wanted.quantile) && !layer.bias) {
      return InvalidArgument("model.params.router: {}: expected a server-owned tensor '{}.gate.e_score_correction_bias' of {} elements, the model has none",
                             wanted.bias ? "alf" : "quantile of scope global", layer.name, layer.experts);
    }
    if (wanted.quantile && wanted.top_k == static_cast<int64_t>(layer.experts)) {
      return InvalidArgument("model.params.router: quantile of scope global: expected top_k below the {} experts of layer '{}', got {}: who serves every token has no margin",
                             layer.experts, layer.name, wanted.top_k);
    }
    margins += wanted.quantile ? layer.experts * wanted.quantile->bins.bins() : 0;
    if (wanted.top_k > static_cast<int64_t>(layer.experts)) {
      return InvalidArgument("model.params.top_k: expected at most the {} experts of layer '{}', got {}", layer.experts, layer.name, wanted.top_k);
    }
  }
  if (margins > kMaxMargins) {
    return InvalidArgument("model.params.router.bins: expected at most {} counts of margins in an update, its layers have {}; choose fewer bins", kMaxMargins, margins);
  }
  std::unique_ptr<MoeState> state(new MoeState(std::move(wanted), std::move(places), model));
  state->sends_ = SendsMoeStats(spec);
  state->weighted_ = strategy.weighs_experts();
  state->needed_by_ = needed_by;
  return state;
}

absl::Status MoeState::CheckStats(const MoeStats& stats) const {
  if (stats.empty()) {
    if (needed_by_.empty()) return absl::OkStatus();
    return InvalidArgument("moe: {} needs the statistics of {} layers, got none", needed_by_, places_.layers.size());
  }
  if (!sends_) return InvalidArgument("moe: expected no statistics in a job with privacy, got those of {} layers", stats.size());
  if (stats.size() != places_.layers.size()) return InvalidArgument("moe: expected statistics of {} layers, got {}", places_.layers.size(), stats.size());
  for (size_t l = 0; l < stats.size(); ++l) {
    const size_t experts = places_.layers[l].experts;
    if (stats[l].counts.size() != experts || stats[l].prob_sum.size() != experts) {
      return InvalidArgument("moe: layer {}: expected {} experts, got {}", l, experts, stats[l].counts.size());
    }
    const double most = static_cast<double>(stats[l].tokens) * static_cast<double>(spec_.top_k > 0 ? static_cast<size_t>(spec_.top_k) : experts);
    if (const double pairs = PairsOf(stats[l]); pairs > most) {
      return InvalidArgument("moe: layer {}: {} tokens with at most {} experts each make {} pairs at most, got {}", l, stats[l].tokens,
                             spec_.top_k > 0 ? static_cast<size_t>(spec_.top_k) : experts, most, pairs);
    }
    TRIB_RETURN_IF_ERROR(CheckMargins(l, stats[l]));
  }
  return absl::OkStatus();
}

absl::Status MoeState::CheckMargins(size_t l, const MoeLayerStats& layer) const {
  const size_t bins = spec_.quantile ? spec_.quantile->bins.bins() : 0;
  if (layer.margins.size() != bins * layer.counts.size()) {
    return InvalidArgument("moe: layer {}: expected {} counts of margins ({} bins for each of {} experts), got {}", l, bins * layer.counts.size(), bins,
                           layer.counts.size(), layer.margins.size());
  }
  for (size_t j = 0; j * bins < layer.margins.size(); ++j) {
    const auto row = layer.margins.begin() + static_cast<std::ptrdiff_t>(j * bins);
    if (const int64_t sum = std::accumulate(row, row + static_cast<std::ptrdiff_t>(bins), int64_t{0}); sum != layer.tokens) {
      return InvalidArgument("moe: layer {}: margins of expert {}: expected those of {} tokens, got {}", l, j, layer.tokens, sum);
    }
  }
  return absl::OkStatus();
}

WeightRuns MoeState::RunsOf(const MoeStats& stats) const {
  if (!weighted_) return {};
  WeightRuns runs;
  for (const ExpertRun& run : places_.runs) {
    runs.push_back({.end = run.end, .factor = run.layer ? Factor(stats[*run.layer], run.expert) : 1});
  }
  if (model_.summed_count() > model_.trainable_count()) runs.push_back({.end = model_.summed_count(), .factor = 1});
  return runs;
}

WeightRuns MoeState::ScalesOf(std::span<const RoundContributor> contributors, double sum_weight) const {
  if (!weighted_) return {};
  WeightRuns runs;
  for (const ExpertRun& run : places_.runs) {
    WeightRun& scale = runs.emplace_back(WeightRun{.end = run.end, .factor = 1});
    if (!run.layer) continue;
    std::vector<double> weights;
    for (const RoundContributor& contributor : contributors) weights.push_back(contributor.weight * Factor(contributor.moe[*run.layer], run.expert));
    const double sum = OrderFreeSum(std::move(weights));
    scale.factor = sum > 0 ? sum_weight / sum : 0;
  }
  if (model_.summed_count() > model_.trainable_count()) runs.push_back({.end = model_.summed_count(), .factor = 1});
  return runs;
}

GlobalMoe MoeState::Next(const GlobalMoe& before, std::span<const RoundContributor> contributors) const {
  const MoeStats sum = SumOf(contributors);
  if (sum.empty() || std::all_of(sum.begin(), sum.end(), [](const MoeLayerStats& layer) { return PairsOf(layer) <= 0; })) return before;
  GlobalMoe next{.step = before.step + 1};
  for (size_t l = 0; l < sum.size(); ++l) {
    const double pairs = PairsOf(sum[l]);
    MoeLayerLoad& load = next.layers.emplace_back();
    load.tokens = static_cast<double>(sum[l].tokens);
    const std::vector<double>* old = l < before.layers.size() && before.layers[l].share.size() == sum[l].counts.size() ? &before.layers[l].share : nullptr;
    for (size_t j = 0; j < sum[l].counts.size(); ++j) {
      const double even = 1 / static_cast<double>(sum[l].counts.size());
      const double now = pairs > 0 ? static_cast<double>(sum[l].counts[j]) / pairs : old != nullptr ? (*old)[j] : even;
      load.share.push_back(old != nullptr ? spec_.load_ema * (*old)[j] + (1 - spec_.load_ema) * now : now);
    }
  }
  return next;
}

absl::Status MoeState::MoveBiases(uint64_t step, std::span<const RoundContributor> contributors, std::span<std::byte> model) const {
  if ((!spec_.bias && !spec_.quantile) || step == 0) return absl::OkStatus();
  const MoeStats sum = SumOf(contributors);
  for (size_t l = 0; l < sum.size(); ++l) {
    const MoeLayerPlace& place = places_.layers[l];
    const size_t element = DTypeBytes(model_.float_dtype());
    std::vector<double> bias(place.experts);
    for (size_t j = 0; j < bias.size(); ++j) bias[j] = FloatAt(model_, model, *place.bias + j);
    if (spec_.bias) spec_.bias->Move(step, sum[l].counts, ScoreDeviation(sum[l]), bias);
    if (spec_.quantile && sum[l].tokens > 0) spec_.quantile->Move(sum[l].margins, sum[l].tokens, static_cast<size_t>(spec_.top_k), bias);
    if (!StoreFloats(model_.float_dtype(), bias, model.subspan(*place.bias * element, bias.size() * element))) {
      return DataLoss("layer '{}': its bias is not finite", place.name);
    }
  }
  return absl::OkStatus();
}

void MoeState::Measure(std::span<const RoundContributor> contributors, std::map<std::string, double>* measured) const {
  const MoeStats sum = SumOf(contributors);
  const auto put = [&](const std::string& prefix, const Measures& one, double share) {
    (*measured)[prefix + "max_vio"] += one.max_vio * share;
    (*measured)[prefix + "client_max_vio"] += one.client_max_vio * share;
    (*measured)[prefix + "specialisation"] += one.specialisation * share;
    (*measured)[prefix + "effective_experts"] += one.effective_experts * share;
    (*measured)[prefix + "balance"] += one.balance * share;
  };
  for (size_t l = 0; l < sum.size(); ++l) {
    const Measures one = MeasuresOf(l, sum, contributors);
    put("moe.", one, 1 / static_cast<double>(sum.size()));
    if (sum.size() > 1) put(fmt::format("moe.layers.{}.", l), one, 1);
  }
}

}  // namespace tributary::aggregator
