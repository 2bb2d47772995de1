// What the asynchronous strategies share (algorithms.md §8; Fraboni, Vidal, Kameni, Lorenzi, JMLR 24(110), 2023): x⁺ = x + η_g Σ ω_iΔ_i, with
// ω_i by `weight`:
//   known   d_i = p_i/freq_i, freq_i the contributions of client i per commit, stated in the job: unbiased
//   online  the same with 1/freq_i the running mean of the intervals seen, p_i until the first is closed
//   none    the strategy's own rule
// times s(τ), τ counted in commits.
#pragma once

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

enum class Frequency { kNone, kKnown, kOnline };
enum class PlainWeight { kOne, kRelativeExamples, kImportance };  // 1 · n_i over the mean n · p_i

struct AsynchronousWeights {
  Frequency frequency = Frequency::kNone;
  PlainWeight plain = PlainWeight::kOne;
  bool uniform = true;                  // p_i = 1/N, else n_i/Σn
  std::optional<PerClient> known;       // freq_i
  absl::Duration interval;              // rounds are ticks of this length; 0: commits
};
std::unique_ptr<WeightRule> MakeAsynchronousWeight(AsynchronousWeights weights);

// weight, frequency, weighting.
std::vector<ParamInfo> FrequencyParams(const std::string& default_weight);
AsynchronousWeights ReadFrequency(ParamReader& reader);
// staleness.kind, staleness.a, staleness.b, max_staleness.
std::vector<ParamInfo> StalenessParams();
StalenessRule ReadStaleness(ParamReader& reader);

std::vector<ParamInfo> Joined(std::vector<ParamInfo> a, const std::vector<ParamInfo>& b);

}  // namespace tributary::aggregator
