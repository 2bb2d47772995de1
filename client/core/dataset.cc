#include "client/core/dataset.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "client/core/random.h"

namespace tributary::client {
namespace {

using Shards = std::vector<std::vector<uint32_t>>;

// Streams of the partition's seed, so that each use has its own numbers.
enum Stream : uint64_t { kShuffle = 1, kDeal = 2, kProportions = 3 };

std::vector<uint32_t> ShuffledIndices(size_t count, int64_t seed) {
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  CounterRandom random(static_cast<uint64_t>(seed), kShuffle);
  random.Shuffle(order);
  return order;
}

// [first, last) of piece `index` when `count` things are cut into `pieces` of equal size ± 1.
std::pair<size_t, size_t> PieceBounds(size_t count, size_t pieces, size_t index) {
  const size_t small = count / pieces;
  const size_t larger = count % pieces;  // the first `larger` pieces have one more
  const size_t first = index * small + std::min(index, larger);
  return {first, first + small + (index < larger ? 1 : 0)};
}

Shards Iid(size_t count, size_t shards, int64_t seed) {
  const std::vector<uint32_t> order = ShuffledIndices(count, seed);
  Shards result(shards);
  for (size_t k = 0; k < shards; ++k) {
    const auto [first, last] = PieceBounds(count, shards, k);
    result[k].assign(order.begin() + static_cast<std::ptrdiff_t>(first), order.begin() + static_cast<std::ptrdiff_t>(last));
  }
  return result;
}

// McMahan et al., AISTATS 2017, §3: sort by label, cut into shards × per_client pieces, deal per_client pieces to each.
Shards LabelShards(std::span<const int64_t> labels, size_t shards, size_t per_client, int64_t seed) {
  std::vector<uint32_t> order = ShuffledIndices(labels.size(), seed);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return labels[a] < labels[b]; });
  const size_t pieces = shards * per_client;
  std::vector<uint32_t> deal(pieces);
  std::iota(deal.begin(), deal.end(), 0U);
  CounterRandom random(static_cast<uint64_t>(seed), kDeal);
  random.Shuffle(deal);
  Shards result(shards);
  for (size_t p = 0; p < pieces; ++p) {
    const auto [first, last] = PieceBounds(labels.size(), pieces, deal[p]);
    auto& shard = result[p / per_client];
    shard.insert(shard.end(), order.begin() + static_cast<std::ptrdiff_t>(first), order.begin() + static_cast<std::ptrdiff_t>(last));
  }
  return result;
}

// Class proportions of one shard ~ Dir(alpha, …, alpha), in units of 2^-32. Integers, because the samples go through libm: a last
// bit that differs between two processors must not deal the examples differently.
std::vector<uint64_t> DrawProportions(CounterRandom& random, double alpha, size_t classes) {
  std::vector<double> gamma(classes);
  double sum = 0;
  for (double& g : gamma) sum += g = random.Gamma(alpha);
  std::vector<uint64_t> units(classes, 0);
  if (!(sum > 0)) {  // a tiny alpha underflows every sample: its limit is a single class
    units[random.Below(classes)] = uint64_t{1} << 32;
    return units;
  }
  for (size_t c = 0; c < classes; ++c) units[c] = static_cast<uint64_t>(std::llround(gamma[c] / sum * 0x1.0p20)) << 12;
  return units;
}

// Hsu, Qi, Brown 2019 (arXiv:1909.06335): every shard draws class proportions q_k ~ Dir(alpha) and has equal size (± 1). Examples
// are drawn without replacement. Deviations: the prior is symmetric with `alpha` per class (their alpha·p with p uniform, alpha
// counted per class); shards draw in turn, one example each, instead of one shard after the other, so that no shard is left with
// only the remains; a shard whose classes are used up draws from what is left in proportion to it.
Shards Dirichlet(std::span<const int64_t> labels, size_t shards, double alpha, int64_t seed) {
  const size_t count = labels.size();
  std::vector<int64_t> names(labels.begin(), labels.end());
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  const size_t classes = names.size();

  std::vector<std::vector<uint32_t>> pool(classes);
  for (uint32_t index : ShuffledIndices(count, seed)) {
    const auto at = std::lower_bound(names.begin(), names.end(), labels[index]);
    pool[static_cast<size_t>(at - names.begin())].push_back(index);
  }
  CounterRandom random(static_cast<uint64_t>(seed), kProportions);
  std::vector<std::vector<uint64_t>> proportions(shards);
  for (auto& p : proportions) p = DrawProportions(random, alpha, classes);

  CounterRandom draw(static_cast<uint64_t>(seed), kDeal);
  Shards result(shards);
  for (size_t taken = 0; taken < count; ++taken) {
    const size_t k = taken % shards;
    uint64_t total = 0;
    for (size_t c = 0; c < classes; ++c) total += pool[c].empty() ? 0 : proportions[k][c];
    const bool by_remains = total == 0;
    if (by_remains) total = count - taken;
    uint64_t ticket = draw.Below(total);
    size_t chosen = 0;
    for (;; ++chosen) {
      const uint64_t share = by_remains ? pool[chosen].size() : (pool[chosen].empty() ? 0 : proportions[k][chosen]);
      if (ticket < share) break;
      ticket -= share;
    }
    result[k].push_back(pool[chosen].back());
    pool[chosen].pop_back();
  }
  return result;
}

}  // namespace

absl::StatusOr<Shards> Partition(const PartitionSpec& spec, std::span<const int64_t> labels, size_t count, int64_t shards,
                                 int64_t seed) {
  if (shards < 1) return InvalidArgument("partition: expected at least 1 shard, got {}", shards);
  if (count > std::numeric_limits<uint32_t>::max()) {
    return InvalidArgument("partition: {} examples, at most {} are supported", count, std::numeric_limits<uint32_t>::max());
  }
  if (!labels.empty() && labels.size() != count) {
    return InvalidArgument("partition: {} labels for {} examples", labels.size(), count);
  }
  const auto shard_count = static_cast<size_t>(shards);
  if (shard_count > count) {
    return InvalidArgument("partition '{}': {} shards of {} examples: expected at least one example per shard", spec.kind, shards, count);
  }
  Shards result;
  if (spec.kind == "iid") {
    result = Iid(count, shard_count, seed);
  } else if (spec.kind == "by_file") {
    return InvalidArgument("partition 'by_file' follows the files of a folder; this data source has no files to divide by");
  } else if (spec.kind == "dirichlet" || spec.kind == "shards") {
    if (labels.empty()) {
      return InvalidArgument("partition '{}' needs class labels; the data has regression targets (use iid)", spec.kind);
    }
    if (spec.kind == "dirichlet") {
      if (!(spec.alpha > 0) || !std::isfinite(spec.alpha)) {
        return InvalidArgument("partition 'dirichlet': expected a finite alpha > 0, got {}", spec.alpha);
      }
      result = Dirichlet(labels, shard_count, spec.alpha, seed);
    } else {
      if (spec.shards_per_client < 1 || static_cast<size_t>(spec.shards_per_client) > count / shard_count) {
        return InvalidArgument("partition 'shards': expected 1 to {} pieces for each of {} shards of {} examples, got {}",
                               count / shard_count, shards, count, spec.shards_per_client);
      }
      result = LabelShards(labels, shard_count, static_cast<size_t>(spec.shards_per_client), seed);
    }
  } else {
    return InvalidArgument("unknown partition '{}': expected iid, dirichlet, shards or by_file", spec.kind);
  }
  for (auto& shard : result) std::sort(shard.begin(), shard.end());  // reading order; minibatches are shuffled anyway
  return result;
}

}  // namespace tributary::client
