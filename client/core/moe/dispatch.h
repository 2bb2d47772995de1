// Moving tokens to their experts and back, as plain loops: the reference of client/cuda/moe_permute.h. (client/torch does it with a gradient.)
// Rows are of `width` floats. Preconditions as in moe_math.h. Threads: pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/core/moe/moe_math.h"

namespace tributary::client {

// gathered[p] = x[token[p]], [pairs, width].
std::vector<float> GatherTokens(const Selection& selection, std::span<const float> x, size_t width);

// out[n] = Σ_k gate[n·K + k]·y[place[n·K + k]], k in turn, each step one fused multiply-add. place: PlacesOf.
std::vector<float> CombineExperts(std::span<const float> y, std::span<const float> gates, std::span<const int32_t> place, size_t top_k, size_t width);

// Its derivatives by y, [pairs, width], and by the gates, [tokens·K], for dout [tokens, width]; a gate's sum is over columns l, l + 32, … of each of
// 32 lanes l in turn (fused), lanes added in halves.
struct CombineGradient {
  std::vector<float> dy, dgates;
};
CombineGradient CombineBackward(std::span<const float> dout, std::span<const float> y, std::span<const float> gates, std::span<const int32_t> place, size_t top_k, size_t width);

// The pair of each choice of SelectionOf(chosen, …), [tokens·top_k].
std::vector<int32_t> PlacesOf(const Selection& selection, std::span<const int32_t> chosen, size_t top_k);

}  // namespace tributary::client
