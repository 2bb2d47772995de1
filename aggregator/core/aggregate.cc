#include "aggregator/core/aggregate.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "aggregator/core/kernels.h"
#include "aggregator/core/privacy/noisy_sums.h"
#include "common/check.h"

namespace tributary::aggregator {

Aggregate::Aggregate(const Strategy& strategy, const TensorLayout& model, Arithmetic arithmetic, int64_t expected_updates, const UpdateEncoding& encoding)
    : strategy_(strategy),
      layout_(model),
      partial_(strategy.UpdateLayout(model).value_or(TensorLayout()), strategy.MakeReducer(layout_.float_dtype(), arithmetic), arithmetic, expected_updates,
               encoding) {}

absl::Status Aggregate::Fold(const RoundContributor& contributor, std::span<const std::byte> update) {
  const PartialInput input{.id = contributor.key.update, .update = update, .weight = contributor.weight};
  return FoldAll({&contributor.key, 1}, {&input, 1});
}

absl::Status Aggregate::FoldAll(std::span<const UpdateKeyRef> keys, std::span<const PartialInput> inputs, const ForEach& for_each) {
  if (strategy_.whole_reducer() == nullptr) {
    TRIB_RETURN_IF_ERROR(partial_.AccumulateAll(inputs, for_each));
    count_ += inputs.size();
    return absl::OkStatus();
  }
  for (size_t i = 0; i < inputs.size(); ++i) TRIB_RETURN_IF_ERROR(Keep(keys[i], inputs[i]));
  return absl::OkStatus();
}

absl::Status Aggregate::FoldElsewhere(std::span<const PartialInput> inputs, const aggregator::FoldElsewhere& fold) {
  TRIB_CHECK(strategy_.whole_reducer() == nullptr);
  TRIB_RETURN_IF_ERROR(partial_.AccumulateElsewhere(inputs, fold));
  count_ += inputs.size();
  return absl::OkStatus();
}

absl::Status Aggregate::Keep(const UpdateKeyRef& key, const PartialInput& input) {
  const std::string name = ToHex(key.update);
  const TensorLayout& layout = partial_.layout();  // of an update
  if (input.update.size() != layout.total_bytes()) {
    return InvalidArgument("update {}: expected {} bytes, got {}", name, layout.total_bytes(), input.update.size());
  }
  const ScanResult scan = input.scan ? *input.scan : Scan(input.update.first(layout.float_bytes()), layout.float_dtype());
  if (!scan.finite) return InvalidArgument("update {}: it has a NaN or an infinity", name);
  for (const Kept& kept : whole_) {
    if (kept.key.update == key.update) return AlreadyExists("update {} is already counted", name);
  }
  whole_.push_back({.key = key, .weight = input.weight, .bytes = {input.update.begin(), input.update.end()}});
  ++count_;
  return absl::OkStatus();
}

absl::Status Aggregate::Step(const Input& input, MemoryState* state, std::span<std::byte> next) const {
  const WholeReducer* whole = strategy_.whole_reducer();
  if (whole == nullptr) {
    const StatePiece piece{.first = 0, .count = partial_.layout().float_count(), .state = partial_.state().data()};
    const Reducer* reducer = &partial_.reducer();
    std::optional<NoisySums> noisy;
    if (input.noise_stddev > 0) {
      reducer = &noisy.emplace(*reducer, std::span(&piece, 1), partial_.layout().trainable_count(), input.noise_stddev, *input.noise);
    }
    return ApplyServerStep(strategy_.server_step(),
                           {.layout = &layout_, .groups = strategy_.update_groups().size(), .reducer = reducer, .pieces = {&piece, 1}, .counters = partial_.counters(),
                            .previous = input.previous, .base = input.base, .facts = input.facts, .keep_buffers = strategy_.local_buffers(),
                            .without_buffers = !strategy_.carries_buffers(), .scales = input.scales, .spread = strategy_.spread(),
                            .for_each = noisy ? ForEach() : input.for_each},
                           state->strategy, next);
  }
  std::vector<const Kept*> order;
  for (const Kept& kept : whole_) order.push_back(&kept);
  std::sort(order.begin(), order.end(), [](const Kept* a, const Kept* b) { return a->key < b->key; });
  std::vector<WholeUpdate> updates;
  for (const Kept* kept : order) updates.push_back({.client = kept->key.client, .flat = kept->bytes, .weight = kept->weight});
  const RowReader row = [state](const std::string& client) -> absl::StatusOr<std::vector<std::byte>> {
    const auto at = state->rows.find(client);
    return at == state->rows.end() ? std::vector<std::byte>() : at->second;
  };
  TRIB_RETURN_IF_ERROR(ApplyWholeStep(strategy_, layout_, updates, row, input.facts, input.previous, state->strategy, next, input.measured));
  if (whole->keeps_rows()) {
    for (const WholeUpdate& update : updates) {
      TRIB_ASSIGN_OR_RETURN(state->rows[update.client], NextRow(strategy_, layout_, update, row));
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyWholeStep(const Strategy& strategy, const TensorLayout& layout, std::span<const WholeUpdate> updates, const RowReader& row,
                            const CommitFacts& facts, std::span<const std::byte> previous, StrategyState& state, std::span<std::byte> next,
                            std::map<std::string, double>* measured) {
  const WholeReducer& whole = *strategy.whole_reducer();
  TRIB_RETURN_IF_ERROR(whole.CheckCount(static_cast<int64_t>(updates.size())));
  TRIB_RETURN_IF_ERROR(PrepareState(strategy, layout, previous, &state));
  const size_t groups = strategy.update_groups().size();
  const bool buffers = strategy.carries_buffers();
  std::vector<double> sums((buffers ? layout.summed_count() : layout.trainable_count()) + (groups - 1) * layout.trainable_count());
  const size_t float_bytes = sums.size() * DTypeBytes(layout.float_dtype());
  const WholeInput input{.layout = &layout, .updates = updates, .registered = facts.registered, .row = row, .version = facts.version, .previous = previous,
                         .ranks = strategy.ranks()};
  TRIB_RETURN_IF_ERROR(whole.Reduce(input, state, sums));
  std::vector<int64_t> counters(buffers ? layout.counter_count() : 0);
  for (size_t k = 0; k < updates.size() && !counters.empty(); ++k) {
    FoldCounters(counters.data(), updates[k].flat.data() + float_bytes, counters.size(), k == 0);
  }
  const std::unique_ptr<Reducer> plain = MakeMeanReducer(DType::kF64, Arithmetic::kFloat64);
  const StatePiece piece{.first = 0, .count = sums.size(), .state = reinterpret_cast<const std::byte*>(sums.data())};
  CommitFacts one = facts;
  one.sum_weight = whole.gives_sums() ? static_cast<double>(updates.size()) : 1;
  TRIB_RETURN_IF_ERROR(ApplyServerStep(strategy.server_step(),
                                       {.layout = &layout, .groups = groups, .reducer = plain.get(), .pieces = {&piece, 1}, .counters = counters, .previous = previous,
                                        .base = {}, .facts = one, .keep_buffers = strategy.local_buffers(), .without_buffers = !buffers},
                                       state, next));
  return whole.Finish(input, next, measured);
}

std::span<const std::byte> RowOf(const TensorLayout& layout, std::span<const std::byte> flat) {
  return flat.first(layout.trainable_count() * DTypeBytes(layout.float_dtype()));
}

absl::StatusOr<std::vector<std::byte>> NextRow(const Strategy& strategy, const TensorLayout& layout, const WholeUpdate& update, const RowReader& row) {
  const std::span<const std::byte> first = RowOf(layout, update.flat);
  if (!strategy.whole_reducer()->adds_to_rows()) return std::vector<std::byte>(first.begin(), first.end());
  TRIB_ASSIGN_OR_RETURN(const std::vector<std::byte> before, row(update.client));
  if (!before.empty() && before.size() != first.size()) {
    return DataLoss("row of client '{}': expected {} bytes, got {}", update.client, first.size(), before.size());
  }
  const size_t trainable = layout.trainable_count();
  const size_t last = (strategy.update_groups().size() - 1) * trainable;
  std::vector<double> sums(trainable);
  for (size_t i = 0; i < trainable; ++i) sums[i] = FloatAt(layout, update.flat, last + i) + (before.empty() ? 0.0 : FloatAt(layout, before, i));
  std::vector<std::byte> next(first.size());
  if (!StoreFloats(layout.float_dtype(), sums, next)) return DataLoss("row of client '{}': its new values are not finite", update.client);
  return next;
}

void AddMeasured(const Strategy& strategy, const TensorLayout& layout, std::span<const std::byte> flat, Scalars* scalars) {
  if (strategy.norm_scalar().empty()) return;
  (*scalars)[strategy.norm_scalar()] = Scan(RowOf(layout, flat), layout.float_dtype()).sum_squares;
}

}  // namespace tributary::aggregator
