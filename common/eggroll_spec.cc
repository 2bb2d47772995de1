#include "common/eggroll_spec.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "common/digest.h"

namespace tributary {

static_assert(std::endian::native == std::endian::little, "fitness logs are little-endian");

absl::StatusOr<EggrollSpec> EggrollSpec::Of(const StrategySpec& strategy) {
  EggrollSpec spec;
  for (const auto& [name, text] : strategy.params) {
    const bool read = name == "population" ? absl::SimpleAtoi(text, &spec.population)
                      : name == "rank"     ? absl::SimpleAtoi(text, &spec.rank)
                      : name == "sigma"    ? absl::SimpleAtod(text, &spec.sigma)
                      : name == "lr"       ? absl::SimpleAtod(text, &spec.lr)
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
  if (!(spec.lr > 0) || !std::isfinite(spec.lr)) return InvalidArgument("strategy '{}': lr: expected a finite number > 0, got {}", strategy.name, spec.lr);
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

std::vector<int64_t> EggrollTotals(std::span<const EggrollTensor> tensors, std::span<const EggrollPart> parts, size_t elements) {
  std::vector<int64_t> totals(elements, 0);
  for (const EggrollPart& part : parts) {
    for (const EggrollTensor& tensor : tensors) {
      EggrollLayer layer = tensor.layer;
      layer.seed = part.seed;
      EggrollSum(layer, part.pairs, std::span(totals).subspan(tensor.first, layer.rows * layer.columns));
    }
  }
  return totals;
}

EggrollSgd::EggrollSgd(const EggrollSpec& spec, DType dtype)
    : dtype_(dtype), single_(EggrollStep(spec.lr, spec.sigma, static_cast<uint64_t>(spec.population), static_cast<uint32_t>(spec.rank))),
      wide_(spec.lr * EggrollUnit(spec)) {}

double EggrollUnit(const EggrollSpec& spec) {
  return spec.sigma * 0x1p-20 / std::sqrt(static_cast<double>(spec.population) * static_cast<double>(spec.rank));
}

size_t EggrollLogBytes(int64_t clients, int64_t population) {
  return static_cast<size_t>(clients) * sizeof(uint64_t) + static_cast<size_t>(population / 2) * sizeof(int32_t);
}

std::vector<std::byte> EggrollLog(std::span<const EggrollPart> parts, int64_t clients, int64_t population) {
  if (parts.size() > static_cast<size_t>(clients)) return {};
  std::vector<std::byte> log(EggrollLogBytes(clients, population));
  const size_t pairs = static_cast<size_t>(population / clients / 2);
  std::byte* slot = log.data();
  for (const EggrollPart& part : parts) {
    std::memcpy(slot, &part.seed, sizeof(part.seed));
    slot += sizeof(part.seed);
    for (const EggrollMember& pair : part.pairs) {
      const auto weight = static_cast<int32_t>(pair.weight);
      std::memcpy(slot + pair.member * sizeof(weight), &weight, sizeof(weight));
    }
    slot += pairs * sizeof(int32_t);
  }
  return log;
}

absl::StatusOr<std::vector<EggrollPart>> ParseEggrollLog(std::span<const std::byte> log, int64_t clients, int64_t population) {
  if (log.size() != EggrollLogBytes(clients, population)) {
    return DataLoss("fitness log: expected {} bytes of {} clients and {} members, got {}", EggrollLogBytes(clients, population), clients, population, log.size());
  }
  constexpr int32_t kMostOfAPair = int32_t{2} << 24;  // two members of |z| = 16
  const size_t pairs = static_cast<size_t>(population / clients / 2);
  std::vector<EggrollPart> parts;
  const std::byte* slot = log.data();
  for (int64_t k = 0; k < clients; ++k) {
    EggrollPart part;
    std::memcpy(&part.seed, slot, sizeof(part.seed));
    slot += sizeof(part.seed);
    for (size_t p = 0; p < pairs; ++p, slot += sizeof(int32_t)) {
      int32_t weight = 0;
      std::memcpy(&weight, slot, sizeof(weight));
      if (weight > kMostOfAPair || weight < -kMostOfAPair) return DataLoss("fitness log: expected a weight of at most {}, got {}", kMostOfAPair, weight);
      if (weight != 0) part.pairs.push_back({static_cast<uint32_t>(p), weight});
    }
    if (part.seed != 0 || !part.pairs.empty()) parts.push_back(std::move(part));
  }
  return parts;
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
