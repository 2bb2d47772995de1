#include "aggregator/core/adapters.h"

#include <algorithm>
#include <cmath>

#include "aggregator/core/lora_product.h"
#include "aggregator/core/rank_allocator.h"
#include "common/check.h"
#include "common/philox.h"

namespace tributary::aggregator {
namespace {

AdapterRound RoundOf(AdapterMode mode, const WholeInput& input, std::span<const AdapterPair> pairs) {
  AdapterRound round{.mode = mode, .model = input.layout, .pairs = pairs, .previous = input.previous, .updates = {}};
  double sum = 0;
  for (const WholeUpdate& update : input.updates) sum += update.weight;
  for (const WholeUpdate& update : input.updates) round.updates.push_back({.share = update.weight / sum, .flat = update.flat});
  return round;
}

class AdapterSums final : public WholeReducer {
 public:
  explicit AdapterSums(AdapterMode mode) : mode_(mode) {}

  absl::Status Reduce(const WholeInput& input, StrategyState&, std::span<double> out) const override {
    TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(mode_, *input.layout));
    if (mode_ == AdapterMode::kFedIt || mode_ == AdapterMode::kFedEx) {
      std::vector<double> weights;
      for (const WholeUpdate& update : input.updates) weights.push_back(update.weight);
      MeanOf(input, weights, 0, out);
      return absl::OkStatus();
    }
    const AdapterRound round = RoundOf(mode_, input, pairs);
    for (size_t i = 0; i < pairs.size(); ++i) {
      const AdapterPair& pair = pairs[i];
      LowRank next;
      if (mode_ == AdapterMode::kFlora) {
        next = Fresh(pair, static_cast<uint32_t>(i), static_cast<uint32_t>(input.version));
      } else {
        const LowRank sum = StackedSum(round, pair);
        if (!std::isfinite(ProductNorm(sum))) return DataLoss("layer '{}': the sum of the clients' adapters is not finite", pair.layer);
        next = Truncated(sum, pair.rank);
      }
      Change(input, next.b, pair.b, out);
      Change(input, next.a, pair.a, out);
    }
    return absl::OkStatus();
  }

  absl::Status Finish(const WholeInput& input, std::span<std::byte> next, std::map<std::string, double>* measured) const override {
    TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(mode_, *input.layout));
    const AdapterRound round = RoundOf(mode_, input, pairs);
    const DType dtype = input.layout->float_dtype();
    if (NeedsResidual(mode_)) {
      for (const AdapterPair& pair : pairs) {
        const std::vector<double> residual = ResidualOf(round, pair, next);
        if (!StoreFloats(dtype, residual, next.subspan(pair.residual * DTypeBytes(dtype), residual.size() * DTypeBytes(dtype)))) {
          return DataLoss("layer '{}': its residual is not finite", pair.layer);
        }
      }
    }
    if (measured != nullptr) (*measured)[kAdapterError] = RelativeError(AdapterErrors(round, next));
    // What a triplet that goes has done is lost, as it is meant to be: no error of the aggregation, and none for a residual to make up for.
    if (input.ranks != nullptr) AllotRanks(*input.ranks, pairs, *input.layout, input.version, next, measured);
    return absl::OkStatus();
  }

 private:
  static LowRank Fresh(const AdapterPair& pair, uint32_t number, uint32_t version) {
    LowRank fresh{Matrix::Zero(pair.out, pair.rank), Matrix::Zero(pair.rank, pair.in)};
    const PhiloxStream stream{.seed = number, .client = 0, .version = version, .stage = RandomStage::kAdapter};
    const double bound = 1 / std::sqrt(static_cast<double>(pair.in));
    for (size_t i = 0; i < fresh.a.values.size(); ++i) {
      fresh.a.values[i] = bound * (std::ldexp(static_cast<double>(stream.Quad(i / 4).word[i % 4]), -31) - 1);
    }
    return fresh;
  }

  // As a difference to the model before, to which the step adds it.
  static void Change(const WholeInput& input, const Matrix& next, size_t first, std::span<double> out) {
    for (size_t i = 0; i < next.values.size(); ++i) out[first + i] = next.values[i] - FloatAt(*input.layout, input.previous, first + i);
  }

  AdapterMode mode_;
};

class LiveSpread final : public SumSpread {
 public:
  absl::StatusOr<std::vector<double>> Spread(const TensorLayout& model, const CommitFacts& facts, std::span<const double> sums) const override {
    TRIB_ASSIGN_OR_RETURN(const std::vector<AdapterPair> pairs, FindAdapters(AdapterMode::kRoLora, model));
    std::vector<double> spread(model.trainable_count());
    const bool moves_b = MovesB(facts.version);
    size_t first = 0;
    for (const AdapterPair& pair : pairs) {
      if (first + LiveRoom(pair) > sums.size()) return InvalidArgument("the sums end at element {}, within layer '{}'", sums.size(), pair.layer);
      std::copy_n(sums.begin() + static_cast<ptrdiff_t>(first), LiveCount(pair, moves_b), spread.begin() + static_cast<ptrdiff_t>(moves_b ? pair.b : pair.a));
      first += LiveRoom(pair);
    }
    return spread;
  }
};

// Steps of their own take fedavg's weights, and all of the step.
absl::Status CheckPlain(AdapterMode mode, const StrategySpec& spec, double server_lr) {
  if (spec.name != "fedavg") {
    return InvalidArgument("strategy '{}': adapters: {} is a server step of its own; expected strategy fedavg, got {}", spec.name, AdapterModeName(mode), spec.name);
  }
  if (mode != AdapterMode::kRoLora && server_lr != 1) {
    return InvalidArgument("strategy 'fedavg': server_lr: with adapters: {} the new factors stand for the whole sum; expected 1, got {}", AdapterModeName(mode), server_lr);
  }
  return absl::OkStatus();
}

// What a model of triplets does not go with.
absl::Status CheckTriplets(const JobSpec& spec, const Strategy& strategy) {
  const AdaLoraSpec& own = spec.model.adapter.adalora;
  std::string why;
  switch (strategy.adapters()) {
    case AdapterMode::kFedIt:
      if (strategy.whole_reducer() == nullptr) why = "adds updates up without looking at them (adapter_error: skip, or a strategy other than fedavg), and nothing allots ranks then";
      break;
    case AdapterMode::kFedEx:
    case AdapterMode::kNone:
      break;
    case AdapterMode::kFlora:
      why = "begins each version with fresh factors, for which the importance of the old ones says nothing";
      break;
    case AdapterMode::kFlexLora:
      why = "makes new components of the clients' sum, for which the importance of the old ones says nothing";
      break;
    case AdapterMode::kFfa:
    case AdapterMode::kRoLora:
    case AdapterMode::kFedSb:
      why = "freezes factors, and adalora trains all three of them";
      break;
  }
  if (!why.empty()) return InvalidArgument("strategy.adapters: {} {}; with model.adapter.kind adalora expected fedex, or fedit with fedavg", AdapterModeName(strategy.adapters()), why);
  if (own.init_versions + own.final_versions >= spec.stop.versions) {
    return InvalidArgument("model.adapter: init_versions {} and final_versions {} leave no version to take ranks away in; expected less than stop.versions = {} together",
                           own.init_versions, own.final_versions, spec.stop.versions);
  }
  return absl::OkStatus();
}

}  // namespace

ParamInfo AdaptersParam() {
  return {.name = "adapters", .default_value = "none", .range = AdapterModeNames(),
          .help = "how the factors of model.adapter are combined; rolora, flora, flexlora and fedex with fedavg only"};
}

ParamInfo AdapterErrorParam() {
  return {.name = "adapter_error", .default_value = "measure", .range = "measure|skip",
          .help = "of adapters: fedit, how far the mean of the factors is from the mean of their products; measuring keeps updates whole until the commit"};
}

absl::StatusOr<std::unique_ptr<Strategy>> WithAdapters(AdapterMode mode, const StrategySpec& spec, std::unique_ptr<Strategy> plain) {
  TRIB_CHECK(mode != AdapterMode::kNone, "a strategy for no adapters");
  if (mode == AdapterMode::kRoLora && !plain->synchronous()) {
    return InvalidArgument("strategy '{}': adapters: rolora moves one factor a version, and an update from an older version moves the other one; expected a "
                           "synchronous strategy, got {}", spec.name, spec.name);
  }
  const bool measured = mode == AdapterMode::kFedIt && spec.name == "fedavg" &&
                        (!spec.params.contains("adapter_error") || spec.params.at("adapter_error") == "measure");
  const bool own_step = mode == AdapterMode::kRoLora || mode == AdapterMode::kFlexLora || NeedsResidual(mode);
  if (own_step || measured) {
    const std::vector<ParamInfo> params = FindStrategy("fedavg")->params();
    ParamReader reader(spec, params);
    const double server_lr = own_step && spec.name != "fedavg" ? 1 : reader.Real("server_lr", kServerLrRange);
    if (own_step) TRIB_RETURN_IF_ERROR(CheckPlain(mode, spec, server_lr));
    StrategyParts parts{.step = MakeAverageStep(server_lr), .weights = MakeClaimedWeight(reader.Choice("weighting") == "uniform")};
    TRIB_RETURN_IF_ERROR(reader.Finish());
    if (mode == AdapterMode::kRoLora) {
      parts.spread = std::make_unique<LiveSpread>();
      parts.scalars = {{.name = kAdapterPhase, .binary = true, .of_version = true, .help = "1 if the update is the change of B, 0 if of A"}};
    } else {
      parts.whole = std::make_unique<AdapterSums>(mode);
    }
    plain = Assemble(std::move(parts));
  }
  plain->set_adapters(mode);
  return plain;
}

absl::Status CheckAdapters(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model) {
  const AdapterSpec& adapter = spec.model.adapter;
  const AdapterMode mode = strategy.adapters();
  if (mode == AdapterMode::kNone) {
    if (!adapter.enabled()) return absl::OkStatus();
    return InvalidArgument("strategy.adapters: the model has an adapter, and nothing says how its factors are combined; expected one of {}", AdapterModeNames());
  }
  if (!adapter.enabled() && spec.model.tensors.empty()) {
    return InvalidArgument("strategy.adapters: {} combines the factors of model.adapter, which the job does not have", AdapterModeName(mode));
  }
  if (adapter.triplets()) TRIB_RETURN_IF_ERROR(CheckTriplets(spec, strategy));
  const absl::StatusOr<std::vector<AdapterPair>> pairs = FindAdapters(mode, model);
  if (!pairs.ok()) return Annotate(pairs.status(), "strategy.adapters");
  for (const AdapterPair& pair : *pairs) {
    if (pair.triplets == adapter.triplets()) continue;
    return InvalidArgument("model.adapter.kind: layer '{}' has {}; expected kind {}, got '{}'", pair.layer, pair.triplets ? "triplets, which alone have a lora_E" : "no lora_E",
                           pair.triplets ? "adalora" : "lora", adapter.kind);
  }
  const bool alike = std::all_of(adapter.client_ranks.begin(), adapter.client_ranks.end(), [&](int64_t rank) { return rank == adapter.rank; });
  if (!alike && !TakesAnyRank(mode)) {
    return InvalidArgument("model.adapter.rank: adapters: {} combines factors entry by entry, which unequal ranks do not allow; expected one rank for all, or adapters "
                           "flora or flexlora", AdapterModeName(mode));
  }
  if (strategy.whole_reducer() == nullptr) return absl::OkStatus();
  const bool parts = spec.hierarchy.shape == HierarchyShape::kTree || spec.hierarchy.shape == HierarchyShape::kShard;
  const std::string against = spec.privacy.enabled                            ? "privacy, whose noise covers sums alone"
                              : spec.Encoding(model).codec != Codec::kPlain ? fmt::format("codec {}", spec.codec)
                              : parts                                       ? fmt::format("hierarchy.shape {}", HierarchyShapeName(spec.hierarchy.shape))
                                                                            : "";
  if (against.empty()) return absl::OkStatus();
  if (adapter.triplets()) {
    return InvalidArgument("model.adapter.kind: adalora keeps every update whole until the commit, which does not go with {}; expected kind lora, and adapters ffa, rolora, "
                           "fedsb, or fedit with adapter_error: skip", against);
  }
  if (mode == AdapterMode::kFedIt) {
    return InvalidArgument("strategy.adapter_error: measuring fedit's error keeps every update whole until the commit, which does not go with {}; expected skip", against);
  }
  return InvalidArgument("strategy.adapters: {} keeps every update whole until the commit, which does not go with {}; expected ffa, rolora, fedsb, or fedit with "
                         "adapter_error: skip", AdapterModeName(mode), against);
}

absl::Status CheckPhase(const Strategy& strategy, const Scalars& scalars, uint64_t version) {
  if (strategy.adapters() != AdapterMode::kRoLora) return absl::OkStatus();
  const auto phase = scalars.find(kAdapterPhase);
  const bool moves_b = MovesB(version + 1);
  if (phase != scalars.end() && (phase->second == 1) == moves_b) return absl::OkStatus();
  return InvalidArgument("wrong_phase: version {} moves {}; got the change of {}", version + 1, moves_b ? "B" : "A", moves_b ? "A" : "B");
}

}  // namespace tributary::aggregator
