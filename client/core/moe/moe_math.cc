#include "client/core/moe/moe_math.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/exact_exp.h"

namespace tributary::client {
namespace {

constexpr size_t kLanes = 32;

// The sum of a row in the order of the header.
template <typename Term>
double SumRow(size_t count, Term term) {
  std::array<double, kLanes> lanes{};
  for (size_t j = 0; j < count; ++j) lanes[j % kLanes] += term(j);
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// What is not a number comes last: a diverged model is found by its loss, not here.
float Comparable(float value) { return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value; }

size_t Rows(std::span<const float> values, size_t experts) {
  TRIB_CHECK(experts > 0 && values.size() % experts == 0, "{} values for {} experts", values.size(), experts);
  return values.size() / experts;
}

}  // namespace

absl::StatusOr<Score> ScoreOf(std::string_view name) {
  if (name == "softmax") return Score::kSoftmax;
  if (name == "sigmoid") return Score::kSigmoid;
  return InvalidArgument("score: expected softmax or sigmoid, got '{}'", name);
}

std::vector<float> Scores(std::span<const float> logits, size_t experts, Score score) {
  const size_t tokens = Rows(logits, experts);
  std::vector<float> scores(logits.size());
  for (size_t n = 0; n < tokens; ++n) {
    const std::span<const float> row = logits.subspan(n * experts, experts);
    float* out = scores.data() + n * experts;
    if (score == Score::kSigmoid) {
      for (size_t j = 0; j < experts; ++j) out[j] = static_cast<float>(1.0 / (1.0 + ExactExp(-static_cast<double>(row[j]))));
      continue;
    }
    const double largest = *std::max_element(row.begin(), row.end());
    const auto power = [&](size_t j) { return ExactExp(static_cast<double>(row[j]) - largest); };
    const double sum = SumRow(experts, power);
    for (size_t j = 0; j < experts; ++j) out[j] = static_cast<float>(power(j) / sum);
  }
  return scores;
}

std::vector<int64_t> Selection::Counts() const {
  std::vector<int64_t> counts(experts());
  for (size_t j = 0; j < counts.size(); ++j) counts[j] = offsets[j + 1] - offsets[j];
  return counts;
}

Selection SelectionOf(std::span<const int32_t> chosen, size_t tokens, size_t experts, size_t top_k) {
  TRIB_CHECK(chosen.size() == tokens * top_k, "{} choices for {} tokens of {}", chosen.size(), tokens, top_k);
  Selection selection{.tokens = tokens, .token = std::vector<int64_t>(chosen.size()), .offsets = std::vector<int64_t>(experts + 1)};
  for (const int32_t expert : chosen) ++selection.offsets[static_cast<size_t>(expert) + 1];
  std::partial_sum(selection.offsets.begin(), selection.offsets.end(), selection.offsets.begin());
  std::vector<int64_t> next(selection.offsets.begin(), selection.offsets.end() - 1);
  for (size_t i = 0; i < chosen.size(); ++i) selection.token[static_cast<size_t>(next[static_cast<size_t>(chosen[i])]++)] = static_cast<int64_t>(i / top_k);
  return selection;
}

Selection SelectTopK(std::span<const float> scores, std::span<const float> bias, size_t experts, size_t top_k) {
  const size_t tokens = Rows(scores, experts);
  TRIB_CHECK(top_k >= 1 && top_k <= experts && (bias.empty() || bias.size() == experts), "top {} of {} experts, bias of {}", top_k, experts, bias.size());
  std::vector<int32_t> chosen(tokens * top_k);
  std::vector<float> key(experts);
  std::vector<int32_t> order(experts);
  for (size_t n = 0; n < tokens; ++n) {
    for (size_t j = 0; j < experts; ++j) key[j] = Comparable(bias.empty() ? scores[n * experts + j] : scores[n * experts + j] + bias[j]);
    std::iota(order.begin(), order.end(), 0);
    const auto before = [&key](int32_t a, int32_t b) {
      const float x = key[static_cast<size_t>(a)], y = key[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top_k), order.end(), before);
    std::copy_n(order.begin(), top_k, chosen.begin() + static_cast<std::ptrdiff_t>(n * top_k));
  }
  return SelectionOf(chosen, tokens, experts, top_k);
}

std::vector<float> Gates(const Selection& selection, std::span<const float> logits, std::span<const float> scores, GateRule rule, GateShape shape) {
  const size_t experts = selection.experts();
  TRIB_CHECK(logits.size() == scores.size() && scores.size() == selection.tokens * experts);
  const auto for_each_pair = [&](auto&& body) {
    for (size_t j = 0; j < experts; ++j) {
      for (int64_t pair = selection.offsets[j]; pair < selection.offsets[j + 1]; ++pair) {
        const auto token = static_cast<size_t>(selection.token[static_cast<size_t>(pair)]);
        body(static_cast<size_t>(pair), token, token * experts + j);
      }
    }
  };
  std::vector<double> value(selection.pairs()), sum(selection.tokens, 0.0), largest(selection.tokens, -HUGE_VAL);
  if (rule == GateRule::kSoftmaxOfChosen) {
    for_each_pair([&](size_t, size_t token, size_t at) { largest[token] = std::max(largest[token], static_cast<double>(logits[at])); });
  }
  for_each_pair([&](size_t pair, size_t token, size_t at) {
    value[pair] = rule == GateRule::kSoftmaxOfChosen ? ExactExp(static_cast<double>(logits[at]) - largest[token]) : static_cast<double>(scores[at]);
    sum[token] += value[pair];
  });
  std::vector<float> gates(selection.pairs());
  for_each_pair([&](size_t pair, size_t token, size_t) {
    // A token whose scores are all 0 (sigmoids far out) gets no gate instead of a division by 0.
    const double gate = rule == GateRule::kScore ? value[pair] : sum[token] > 0 ? value[pair] / sum[token] : 0.0;
    gates[pair] = static_cast<float>(shape == GateShape::kSqrt ? std::sqrt(gate + 1e-30) : gate);
  });
  return gates;
}

float RankLargest(std::span<const float> values, size_t rank, std::vector<float>& scratch) {
  TRIB_CHECK(rank >= 1 && rank <= values.size(), "rank {} of {} values", rank, values.size());
  scratch.assign(values.begin(), values.end());
  for (float& value : scratch) value = Comparable(value);
  const auto at = scratch.begin() + static_cast<std::ptrdiff_t>(rank - 1);
  std::nth_element(scratch.begin(), at, scratch.end(), std::greater<float>());
  return *at;
}

double BalanceLoss(std::span<const float> scores, std::span<const double> weights) {
  const size_t tokens = Rows(scores, weights.size());
  if (tokens == 0) return 0;
  double sum = 0;
  for (size_t i = 0; i < scores.size(); ++i) sum += weights[i % weights.size()] * static_cast<double>(scores[i]);
  return sum / static_cast<double>(tokens);
}

std::vector<double> BalanceLossGradient(std::span<const float> scores, std::span<const double> weights) {
  const size_t experts = weights.size();
  const size_t tokens = Rows(scores, experts);
  std::vector<double> gradient(scores.size());
  for (size_t n = 0; n < tokens; ++n) {
    double mean = 0;
    for (size_t j = 0; j < experts; ++j) mean += weights[j] * static_cast<double>(scores[n * experts + j]);
    for (size_t j = 0; j < experts; ++j) {
      gradient[n * experts + j] = static_cast<double>(scores[n * experts + j]) * (weights[j] - mean) / static_cast<double>(tokens);
    }
  }
  return gradient;
}

std::vector<double> BalanceWeights(double alpha, std::span<const double> load_share) {
  std::vector<double> weights(load_share.begin(), load_share.end());
  for (double& w : weights) w *= alpha * static_cast<double>(weights.size());
  return weights;
}

std::vector<double> LoadShare(std::span<const int64_t> counts) {
  double sum = 0;
  for (const int64_t count : counts) sum += static_cast<double>(count);
  std::vector<double> share(counts.size(), 1.0 / static_cast<double>(counts.size()));
  for (size_t j = 0; sum > 0 && j < counts.size(); ++j) share[j] = static_cast<double>(counts[j]) / sum;
  return share;
}

double ZLoss(std::span<const float> logits, size_t experts) {
  const size_t tokens = Rows(logits, experts);
  double sum = 0;
  for (size_t n = 0; n < tokens; ++n) {
    const std::span<const float> row = logits.subspan(n * experts, experts);
    const double largest = *std::max_element(row.begin(), row.end());
    const double log_sum = largest + std::log(SumRow(experts, [&](size_t j) { return ExactExp(static_cast<double>(row[j]) - largest); }));
    sum += log_sum * log_sum;
  }
  return tokens == 0 ? 0 : sum / static_cast<double>(tokens);
}

}  // namespace tributary::client
