#include "common/moe_stats.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace tributary {
namespace {

double Sum(std::span<const int64_t> counts) {
  double sum = 0;
  for (const int64_t count : counts) sum += static_cast<double>(count);
  return sum;
}

}  // namespace

double MaxVio(std::span<const int64_t> counts) {
  const double sum = Sum(counts);
  if (sum <= 0) return 0;
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) * static_cast<double>(counts.size()) / sum - 1;
}

double EffectiveExperts(std::span<const int64_t> counts) {
  double sum = 0, squares = 0;
  for (const int64_t count : counts) {
    sum += static_cast<double>(count);
    squares += static_cast<double>(count) * static_cast<double>(count);
  }
  return squares > 0 ? sum * sum / squares : 0;
}

double Specialisation(std::span<const std::vector<int64_t>> counts) {
  if (counts.size() < 2) return 0;
  const size_t experts = counts[0].size();
  std::vector<double> of_expert(experts, 0.0);
  double all = 0;
  for (const std::vector<int64_t>& client : counts) {
    TRIB_CHECK(client.size() == experts, "clients with {} and {} experts", experts, client.size());
    for (size_t j = 0; j < experts; ++j) of_expert[j] += static_cast<double>(client[j]);
    all += Sum(client);
  }
  double information = 0;
  for (const std::vector<int64_t>& client : counts) {
    const double of_client = Sum(client);
    for (size_t j = 0; j < experts; ++j) {
      const auto joint = static_cast<double>(client[j]);
      if (joint > 0) information += joint / all * std::log(joint * all / (of_client * of_expert[j]));
    }
  }
  return information / std::log(static_cast<double>(counts.size()));
}

MoeLayerStats& MoeLayerStats::operator+=(const MoeLayerStats& more) {
  TRIB_CHECK(counts.size() == more.counts.size() && prob_sum.size() == more.prob_sum.size(), "statistics of {} and {} experts", counts.size(),
             more.counts.size());
  TRIB_CHECK(margins.size() == more.margins.size(), "margins in {} and {} bins", margins.size(), more.margins.size());
  for (size_t j = 0; j < counts.size(); ++j) counts[j] += more.counts[j];
  for (size_t j = 0; j < prob_sum.size(); ++j) prob_sum[j] += more.prob_sum[j];
  for (size_t i = 0; i < margins.size(); ++i) margins[i] += more.margins[i];
  square_sum += more.square_sum;
  tokens += more.tokens;
  return *this;
}

void AddStats(const MoeStats& more, MoeStats* sum) {
  if (sum->empty()) {
    *sum = more;
    return;
  }
  TRIB_CHECK(sum->size() == more.size(), "statistics of {} and {} layers", sum->size(), more.size());
  for (size_t l = 0; l < more.size(); ++l) (*sum)[l] += more[l];
}

double ScoreDeviation(const MoeLayerStats& layer) {
  const double scores = static_cast<double>(layer.tokens) * static_cast<double>(layer.prob_sum.size());
  if (scores <= 0) return 0;
  double sum = 0;
  for (const double p : layer.prob_sum) sum += p;
  const double mean = sum / scores;
  return std::sqrt(std::max(0.0, layer.square_sum / scores - mean * mean));
}

}  // namespace tributary
