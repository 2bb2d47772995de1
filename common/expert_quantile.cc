#include "common/expert_quantile.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace tributary {
namespace {

constexpr size_t kMagnitudes = 16;                // a side
constexpr int kSmallest = -14;                    // the first ends at 2 to this power
constexpr double kScale = 1 << -kSmallest;

}  // namespace

MarginBins::MarginBins(size_t bins) : bins_(bins) { TRIB_CHECK(bins == 32 || bins == 64 || bins == 128 || bins == 256, "{} bins", bins); }

size_t MarginBins::Bin(double margin) const {
  if (std::isnan(margin)) return 0;
  const size_t half = bins_ / 2;
  const auto parts = static_cast<double>(half / kMagnitudes);
  const double size = std::min(std::abs(margin) * kScale, kScale * 2);
  const int octave = size < 1 ? -1 : std::ilogb(size);
  const double within = octave < 0 ? size : std::scalbn(size, -octave) - 1;  // [0, 1) of its magnitude
  const size_t place = std::min(static_cast<size_t>((octave + 1 + within) * parts), half - 1);
  return margin < 0 ? half - 1 - place : half + place;
}

double MarginBins::Upper(size_t bin) const {
  const size_t half = bins_ / 2, parts = half / kMagnitudes;
  if (bin + 1 < half) return -Upper(bins_ - 2 - bin);
  const size_t place = bin + 1 - half;  // borders from 0
  if (place == 0) return 0;
  const auto magnitude = static_cast<int>(place / parts);
  const double part = static_cast<double>(place % parts) / static_cast<double>(parts);
  return magnitude == 0 ? std::scalbn(part, kSmallest) : std::scalbn(1 + part, kSmallest + magnitude - 1);
}

double MarginBins::RankLargest(std::span<const int64_t> counts, int64_t rank) const {
  TRIB_CHECK(counts.size() == bins_ && rank >= 1, "rank {} of {} bins, {} counts", rank, bins_, counts.size());
  size_t bin = bins_ - 1;
  for (; rank > counts[bin]; --bin) {
    rank -= counts[bin];
    TRIB_CHECK(bin > 0, "{} margins too few", rank);
  }
  const double part = (static_cast<double>(rank) - 0.5) / static_cast<double>(counts[bin]);
  return Upper(bin) - part * (Upper(bin) - Lower(bin));
}

int64_t QuantileRank(int64_t tokens, size_t experts, size_t top_k) {
  const int64_t even = std::llround(static_cast<double>(top_k) * static_cast<double>(tokens) / static_cast<double>(experts));
  return std::min(even + 1, tokens);
}

absl::StatusOr<ExpertQuantileRule> ExpertQuantileRule::Of(const NamedParams& params) {
  ExpertQuantileRule rule;
  TRIB_ASSIGN_OR_RETURN(rule.rate, params.Number("rate", 0, 1));
  TRIB_ASSIGN_OR_RETURN(const size_t scope, params.Choice("scope", {"local", "global"}));
  rule.global = scope == 1;
  TRIB_ASSIGN_OR_RETURN(const size_t bins, params.Choice("bins", {"32", "64", "128", "256"}));
  rule.bins = MarginBins(size_t{32} << bins);
  return rule;
}

void ExpertQuantileRule::Move(std::span<const int64_t> margins, int64_t tokens, size_t top_k, std::span<double> bias) const {
  TRIB_CHECK(margins.size() == bias.size() * bins.bins() && tokens >= 1, "{} margins of {} tokens for {} experts", margins.size(), tokens, bias.size());
  const int64_t rank = QuantileRank(tokens, bias.size(), top_k);
  for (size_t j = 0; j < bias.size(); ++j) bias[j] -= rate * bins.RankLargest(margins.subspan(j * bins.bins(), bins.bins()), rank);
}

}  // namespace tributary
