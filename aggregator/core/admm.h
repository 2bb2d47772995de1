// The server half of the consensus ADMM strategies (algorithms.md §11; RERCE-Fed: Lari, Arablouei, Gogineni, Werner, arXiv 2409.13451). Where
// other updates carry a difference, these carry a value: w_i, 2w_i⁺ − w_i, or u_i = w_i + λ_i/ρ. Buffers are averaged as ever.
#pragma once

#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

// x⁺ = mean over all N clients of the row that each sent last; a client that has sent none counts as the model that all began from.
// `state`: whether the rows are sums over what the clients did together (kShared), or each its client's own (kOwn).
std::unique_ptr<Strategy> MakeTableStrategy(ClientStateKind state, int64_t clients);

// x⁺ = mean of the participants' w_i, and with each version s = 2x⁺ − x, which begins as x⁰. `forget_once`: s = 2x⁺ in version 2, as in the
// authors' script.
std::unique_ptr<Strategy> MakeExtrapolatedMean(bool forget_once);

inline constexpr RealRange kRhoRange{.low = 0, .low_open = true};
ParamInfo RhoParam();

}  // namespace tributary::aggregator
