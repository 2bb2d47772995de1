#include "common/eggroll_spec.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>

#include "common/digest.h"

namespace tributary {

absl::StatusOr<EggrollSpec> EggrollSpec::Of(const StrategySpec& strategy) {
  EggrollSpec spec;
  for (const auto& [name, text] : strategy.params) {
    const bool read = name == "population" ? absl::SimpleAtoi(text, &spec.population)
                      : name == "rank"     ? absl::SimpleAtoi(text, &spec.rank)
                      : name == "sigma"    ? absl::SimpleAtod(text, &spec.sigma)
                                           : true;
    if (!read) return InvalidArgument("strategy '{}': {}: expected a number, got '{}'", strategy.name, name, text);
  }
  if (spec.population < 2 || spec.population > kMaxPopulation || spec.population % 2 != 0) {
    return InvalidArgument("strategy '{}': population: expected an even number from 2 to {}, got {}", strategy.name, kMaxPopulation, spec.population);
  }
  if (spec.rank < 1 || spec.rank > kMaxRank) return InvalidArgument("strategy '{}': rank: expected 1 to {}, got {}", strategy.name, kMaxRank, spec.rank);
  if (!(spec.sigma > 0) || !std::isfinite(spec.sigma)) {
    return InvalidArgument("strategy '{}': sigma: expected a finite number > 0, got {}", strategy.name, spec.sigma);
  }
  return spec;
}

std::vector<EggrollTensor> EggrollTensors(const TensorLayout& model, int64_t rank) {
  std::vector<EggrollTensor> tensors;
  size_t first = 0;
  uint32_t number = 0;
  for (const PlacedTensor& tensor : model.tensors()) {
    if (tensor.spec.kind != TensorKind::kTrainable) break;  // they come first
    if (tensor.elements > 0) {
      const uint64_t rows = tensor.spec.shape.empty() ? 1 : static_cast<uint64_t>(tensor.spec.shape[0]);
      tensors.push_back({.layer = {.seed = 0, .layer = number, .rank = static_cast<uint32_t>(rank), .rows = rows, .columns = tensor.elements / rows}, .first = first});
    }
    first += tensor.elements;
    ++number;
  }
  return tensors;
}

uint64_t EggrollNoiseSeed(int64_t job_seed, uint64_t version, const std::string& client) {
  const std::string text = fmt::format("eggroll|{}|{}|{}", job_seed, version, client);
  const std::string digest = Sha256Hex(std::as_bytes(std::span(text.data(), text.size())));
  uint64_t seed = 0;
  for (size_t i = 0; i < 16; ++i) seed = seed << 4 | static_cast<uint64_t>(digest[i] <= '9' ? digest[i] - '0' : digest[i] - 'a' + 10);
  return seed;
}

void EggrollNoise(std::span<const EggrollTensor> tensors, uint64_t seed, uint32_t pair, std::span<float> noise) {
  std::vector<int64_t> sum;
  const EggrollMember one{.member = pair, .weight = 1};
  for (const EggrollTensor& tensor : tensors) {
    EggrollLayer layer = tensor.layer;
    layer.seed = seed;
    sum.assign(layer.rows * layer.columns, 0);
    EggrollSum(layer, {&one, 1}, sum);
    std::transform(sum.begin(), sum.end(), noise.begin() + static_cast<ptrdiff_t>(tensor.first), [](int64_t value) { return static_cast<float>(value); });
  }
}

}  // namespace tributary
