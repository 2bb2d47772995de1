// The rule by which biases of experts balance their loads by quantiles, over all clients: tokens go to the K largest of score + bias s + b. With
// a_i the (K+1)-th largest of a token's s_ij + b_j and margins m_ij = s_ij + b_j − a_i, expert j would have the even load if its bias were lower
// by c_j, the (round(K·N/E)+1)-th largest of its N margins. Once a version b_j ← b_j − rate·c_j.
// Clients send histograms of their margins, whose sums are those of all tokens (own; moe_lora note §3.4, which knows the rule for one batch
// from a description of code). Margins are small where the balance is good, so bins are those of a small floating-point number: 16 steps of
// magnitude a side, [0, 2⁻¹⁴) and the 15 octaves from there to 2, each cut into bins/32 equal parts. c_j lies in the bin of the exact quantile,
// placed in it by rank; a margin beyond ±2 counts as in the last bin. All borders are exact, so that machines agree to the bit.
// Threads: values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/named_params.h"
#include "common/status.h"

namespace tributary {

// As in a job: model.params.router {name: quantile, …}. `bins` are those of scope global.
#define TRIB_QUANTILE_DEFAULTS "rate=0.5,scope=local,bins=32"

class MarginBins {
 public:
  MarginBins() = default;
  // 32, 64, 128 or 256; anything else is a TRIB_CHECK.
  explicit MarginBins(size_t bins);
  size_t bins() const { return bins_; }
  // The bin of a margin, ascending; what is not a number is in the lowest.
  size_t Bin(double margin) const;
  // Borders of a bin, the lower and the upper.
  double Lower(size_t bin) const { return -Upper(bins_ - 1 - bin); }
  double Upper(size_t bin) const;
  // About the `rank`-th largest (1: the largest) of the margins that `counts` [bins] counts; rank in [1, Σ counts].
  double RankLargest(std::span<const int64_t> counts, int64_t rank) const;
  bool operator==(const MarginBins&) const = default;

 private:
  size_t bins_ = 32;
};

// Which margin of N tokens is c_j: its rank from the largest, in [1, N].
int64_t QuantileRank(int64_t tokens, size_t experts, size_t top_k);

struct ExpertQuantileRule {
  double rate = 0.5;
  bool global = false;  // the server moves the biases, by the margins of all clients
  MarginBins bins;

  // INVALID_ARGUMENT naming the parameter.
  static absl::StatusOr<ExpertQuantileRule> Of(const NamedParams& params);
  // margins [E × bins] of N tokens, each expert's adding up to N >= 1. bias [E].
  void Move(std::span<const int64_t> margins, int64_t tokens, size_t top_k, std::span<double> bias) const;
};

}  // namespace tributary
