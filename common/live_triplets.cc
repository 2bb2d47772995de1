#include "common/live_triplets.h"

#include <cstring>
#include <utility>

namespace tributary {

absl::StatusOr<std::unique_ptr<const LiveTriplets>> LiveTriplets::Of(const JobSpec& spec, const TensorLayout& model) {
  const AdapterMode mode = AdaptersOf(spec.strategy);
  if (!spec.model.adapter.triplets() || spec.model.adapter.adalora.regrow || mode == AdapterMode::kNone) return nullptr;
  TRIB_ASSIGN_OR_RETURN(std::vector<AdapterPair> pairs, FindAdapters(mode, model));
  return std::unique_ptr<const LiveTriplets>(new LiveTriplets(model, std::move(pairs)));
}

LiveTriplets::LiveTriplets(const TensorLayout& model, std::vector<AdapterPair> pairs)
    : elements_(model.trainable_count()), dtype_(model.float_dtype()), pairs_(std::move(pairs)) {}

bool LiveTriplets::In(std::span<const std::byte> version, const AdapterPair& pair, size_t triplet) const {
  const size_t each = DTypeBytes(dtype_);
  const std::byte* at = version.data() + (pair.mask + triplet) * each;
  if (dtype_ == DType::kF64) {
    double mask = 0;
    std::memcpy(&mask, at, each);
    return mask != 0;
  }
  float mask = 0;
  std::memcpy(&mask, at, each);
  return mask != 0;
}

size_t LiveTriplets::UpdateBytes(std::span<const std::byte> version) const {
  size_t elements = 0;
  for (const AdapterPair& pair : pairs_) {
    for (size_t l = 0; l < pair.rank; ++l) {
      if (In(version, pair, l)) elements += pair.in + pair.out + 2;  // of A and B, E and the importance
    }
  }
  return elements * DTypeBytes(dtype_);
}

std::vector<LiveTriplets::Run> LiveTriplets::RunsOf(std::span<const std::byte> version) const {
  std::vector<bool> travels(elements_, false);
  for (const AdapterPair& pair : pairs_) {
    for (size_t l = 0; l < pair.rank; ++l) {
      if (!In(version, pair, l)) continue;
      for (size_t j = 0; j < pair.in; ++j) travels[pair.a + l * pair.in + j] = true;
      for (size_t i = 0; i < pair.out; ++i) travels[pair.b + i * pair.rank + l] = true;
      travels[pair.e + l] = travels[pair.importance + l] = true;
    }
  }
  std::vector<Run> runs;
  for (size_t i = 0; i < elements_; ++i) {
    if (!travels[i]) continue;
    if (runs.empty() || runs.back().first + runs.back().count != i) runs.push_back({.first = i, .count = 0});
    ++runs.back().count;
  }
  return runs;
}

LargeBytes LiveTriplets::Pack(std::span<const std::byte> version, std::span<const std::byte> update) const {
  const size_t each = DTypeBytes(dtype_);
  LargeBytes packed;
  packed.reserve(UpdateBytes(version));
  for (const Run& run : RunsOf(version)) {
    const std::span<const std::byte> values = update.subspan(run.first * each, run.count * each);
    packed.insert(packed.end(), values.begin(), values.end());
  }
  return packed;
}

absl::StatusOr<LargeBytes> LiveTriplets::Unpack(std::span<const std::byte> version, std::span<const std::byte> packed) const {
  if (packed.size() != UpdateBytes(version)) {
    return InvalidArgument("the update has {} bytes, one of the triplets that are in {}", packed.size(), UpdateBytes(version));
  }
  const size_t each = DTypeBytes(dtype_);
  LargeBytes update(elements_ * each, std::byte{0});
  size_t at = 0;
  for (const Run& run : RunsOf(version)) {
    std::memcpy(update.data() + run.first * each, packed.data() + at, run.count * each);
    at += run.count * each;
  }
  return update;
}

}  // namespace tributary
