// What a client says of the experts of a mixture of experts with an update, and what the server says of all of them with a version.
// Statistics are sums, one entry a layer that has experts, in the order of moe_spec.h: those of several updates are added element by element.
// Threads: values and pure functions. Errors: none; sizes that differ are TRIB_CHECKs, what comes from outside is checked before
// (proto/codec.h, aggregator/core/moe_state.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tributary {

// Of one layer with E experts, over the training steps of a task.
struct MoeLayerStats {
  std::vector<int64_t> counts{};   // [E] tokens that each expert served
  std::vector<double> prob_sum{};  // [E] Σ over tokens of the router's scores
  double square_sum = 0;           // Σ over tokens and experts of score²
  int64_t tokens = 0;
  std::vector<int64_t> margins{};  // [E × bins] tokens by their margin at each expert (common/expert_quantile.h); empty: no router asks
  bool operator==(const MoeLayerStats&) const = default;
  MoeLayerStats& operator+=(const MoeLayerStats& more);
};
using MoeStats = std::vector<MoeLayerStats>;  // empty: none were sent

// sum += more; an empty `sum` becomes `more`.
void AddStats(const MoeStats& more, MoeStats* sum);
// Standard deviation of the layer's scores; 0 where there were none.
double ScoreDeviation(const MoeLayerStats& layer);

// Of one layer: the load of all clients as of a version.
struct MoeLayerLoad {
  std::vector<double> share{};  // [E], sums to 1; a running mean over versions (`lbl_ema`)
  double tokens = 0;            // that the last version counted
  bool operator==(const MoeLayerLoad&) const = default;
};
// What goes to clients with a task. Biases that the server owns are not here: they are part of the model.
struct GlobalMoe {
  uint64_t step = 0;                   // versions that have counted tokens
  std::vector<MoeLayerLoad> layers{};  // empty before the first
  bool operator==(const GlobalMoe&) const = default;
};

// max_i c_i / mean c − 1; 0 where nothing was routed. (Wang et al. 2024, arXiv 2408.15664, eq. 7.)
double MaxVio(std::span<const int64_t> counts);

// (Σπ)²/Σπ²: as many experts as would carry the load if they shared it evenly.
double EffectiveExperts(std::span<const int64_t> counts);

// I(client; expert) / ln(clients) of counts[client][expert]: 0 if all clients load the experts alike, 1 if the expert tells the client.
// 0 for less than two clients.
double Specialisation(std::span<const std::vector<int64_t>> counts);

}  // namespace tributary
