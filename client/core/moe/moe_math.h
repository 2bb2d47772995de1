// The arithmetic of routing in a mixture-of-experts layer, on plain spans: the path of the processor, and the reference of
// client/cuda/router_topk.h. Selection has no gradient; what learns (gates, balance loss) is computed again by client/torch with one, and
// tested against these.
//
// Letters: N tokens, E experts, K chosen a token, L = N·K/E the even load. Arrays are row-major: scores and logits [N, E].
// Scores are single precision whatever the model's type; sums and exponentials are in double, in a fixed order (a row's: 32 lanes, expert
// j in lane j mod 32, lanes added in halves), so that the GPU's are bit for bit the same.
// Ties are won by the lowest index; what is not a number comes after everything else. Preconditions are TRIB_CHECKs: sizes come from our own code, never from outside. Threads: pure.
// Sources: moe_lora note §2 and §3; each function names its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace tributary::client {

enum class Score { kSoftmax, kSigmoid };
// "softmax", "sigmoid". INVALID_ARGUMENT for another name.
absl::StatusOr<Score> ScoreOf(std::string_view name);

// s = softmax(z) of each row, or sigmoid(z) of each element.
std::vector<float> Scores(std::span<const float> logits, size_t experts, Score score);

// Who serves whom: pairs sorted by expert, within one by token. Expert j has pairs [offsets[j], offsets[j + 1]).
struct Selection {
  size_t tokens = 0;
  std::vector<int64_t> token;    // [M]
  std::vector<int64_t> offsets;  // [E + 1]

  size_t experts() const { return offsets.size() - 1; }
  size_t pairs() const { return token.size(); }
  // c: tokens of each expert.
  std::vector<int64_t> Counts() const;
};

// The K largest of score + bias in each row (bias [E], or empty for none).
Selection SelectTopK(std::span<const float> scores, std::span<const float> bias, size_t experts, size_t top_k);
// From experts chosen token by token: chosen[n·K + k].
Selection SelectionOf(std::span<const int32_t> chosen, size_t tokens, size_t experts, size_t top_k);

// The gates of a selection's pairs, in its order.
enum class GateRule {
  kRenormalised,     // g = s / Σ of the token's chosen s
  kScore,            // g = s as it is (expert choice, softmax first)
  kSoftmaxOfChosen,  // g = softmax of the logits over the experts that have the token (expert choice, selection on raw logits)
};
enum class GateShape { kLinear, kSqrt };  // kSqrt: √(g + 1e−30), SqrtGate (arXiv 2603.28743): independent outputs keep their variance
std::vector<float> Gates(const Selection& selection, std::span<const float> logits, std::span<const float> scores, GateRule rule, GateShape shape);

// The `rank`-th largest (1: the largest) of `values`; rank in [1, size]. `scratch` is overwritten.
float RankLargest(std::span<const float> values, size_t rank, std::vector<float>& scratch);

// Load-balancing loss Σ_i w_i·P_i with P_i = mean over tokens of s_ni: weights w = α·E·f for a load share f (Σf = 1), so that an even
// load costs α. f carries no gradient. Source: Switch Transformer (Fedus et al. 2022); "Demons in the Detail" (arXiv 2501.11873) for an f
// taken over all workers.
double BalanceLoss(std::span<const float> scores, std::span<const double> weights);
// Its derivative by the logits of a softmax, [N, E].
std::vector<double> BalanceLossGradient(std::span<const float> scores, std::span<const double> weights);
std::vector<double> BalanceWeights(double alpha, std::span<const double> load_share);
// c / Σc; even where nothing was chosen.
std::vector<double> LoadShare(std::span<const int64_t> counts);

// Mean over tokens of (log Σ_j e^z_nj)², to be multiplied by its coefficient. Source: ST-MoE (Zoph et al. 2022).
double ZLoss(std::span<const float> logits, size_t experts);

}  // namespace tributary::client
