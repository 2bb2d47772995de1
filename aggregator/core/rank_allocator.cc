#include "aggregator/core/rank_allocator.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "aggregator/core/server_step.h"
#include "aggregator/core/whole_reducer.h"
#include "common/check.h"

namespace tributary::aggregator {
namespace {

void Store(const TensorLayout& model, size_t element, double value, std::span<std::byte> flat) {
  const size_t each = DTypeBytes(model.float_dtype());
  TRIB_CHECK(StoreFloats(model.float_dtype(), std::span(&value, 1), flat.subspan(element * each, each)), "element {} cannot hold {}", element, value);
}

// Elements of one tensor of each layer, layer by layer.
std::vector<double> Gather(std::span<const AdapterPair> pairs, const TensorLayout& model, std::span<const std::byte> flat, size_t AdapterPair::*first) {
  std::vector<double> values;
  for (const AdapterPair& pair : pairs) {
    for (size_t l = 0; l < pair.rank; ++l) values.push_back(FloatAt(model, flat, pair.*first + l));
  }
  return values;
}

}  // namespace

RankSchedule RankSchedule::Of(const JobSpec& spec) {
  const AdaLoraSpec& own = spec.model.adapter.adalora;
  return {.versions = spec.stop.versions, .init_versions = own.init_versions, .final_versions = own.final_versions, .interval = own.interval,
          .target_rank = own.target_rank, .regrow = own.regrow};
}

RankBudget BudgetAt(const RankSchedule& schedule, int64_t initial, int64_t target, int64_t t) {
  const int64_t fixed = schedule.versions - schedule.final_versions;
  if (t <= schedule.init_versions) return {.triplets = initial, .allots = false};
  if (t > fixed) return {.triplets = target, .allots = true};
  const double left = 1 - static_cast<double>(t - schedule.init_versions) / static_cast<double>(fixed - schedule.init_versions);
  const double budget = static_cast<double>(initial - target) * (left * left * left) + static_cast<double>(target);
  return {.triplets = static_cast<int64_t>(budget), .allots = t % schedule.interval == 0};
}

std::vector<bool> Largest(std::span<const double> scores, size_t count) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  std::vector<bool> among(scores.size(), false);
  for (size_t i = 0; i < std::min(count, order.size()); ++i) among[order[i]] = true;
  return among;
}

void AllotRanks(const RankSchedule& schedule, std::span<const AdapterPair> pairs, const TensorLayout& model, uint64_t version, std::span<std::byte> next,
                std::map<std::string, double>* measured) {
  const auto t = static_cast<int64_t>(version);
  const int64_t fixed = schedule.versions - schedule.final_versions;
  const std::vector<double> masks = Gather(pairs, model, next, &AdapterPair::mask);
  std::vector<double> scores = Gather(pairs, model, next, &AdapterPair::importance);
  std::vector<bool> keep(scores.size(), true);
  if (t > fixed || !schedule.regrow) {
    for (size_t i = 0; i < keep.size(); ++i) keep[i] = masks[i] != 0;
  }
  bool fixes = t == fixed;  // whether the mask takes over who is left
  if (t <= fixed) {
    const int64_t target = schedule.target_rank * static_cast<int64_t>(pairs.size());
    const RankBudget budget = BudgetAt(schedule, static_cast<int64_t>(keep.size()), target, t);
    if (budget.allots || t == fixed) {
      for (size_t i = 0; i < keep.size(); ++i) {
        if (!keep[i]) scores[i] = -std::numeric_limits<double>::infinity();  // out already; the budget never rises
      }
      keep = Largest(scores, static_cast<size_t>(budget.triplets));
      fixes = fixes || !schedule.regrow;
    }
  }
  size_t i = 0;
  for (const AdapterPair& pair : pairs) {
    for (size_t l = 0; l < pair.rank; ++l, ++i) {
      if (!keep[i]) Store(model, pair.e + l, 0, next);
      if (fixes) Store(model, pair.mask + l, keep[i] ? 1 : 0, next);
    }
  }
  if (measured != nullptr) (*measured)[kAdapterTriplets] = static_cast<double>(std::count(keep.begin(), keep.end(), true));
}

}  // namespace tributary::aggregator
