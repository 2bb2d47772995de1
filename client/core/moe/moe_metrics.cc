#include "client/core/moe/moe_metrics.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace tributary::client {
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

size_t UnservedTokens(const Selection& selection) {
  std::vector<bool> served(selection.tokens, false);
  for (const int64_t token : selection.token) served[static_cast<size_t>(token)] = true;
  return static_cast<size_t>(std::count(served.begin(), served.end(), false));
}

void LoadRecord::Add(std::span<const int64_t> counts) {
  if (counts_.empty()) counts_.assign(counts.size(), 0);
  TRIB_CHECK(counts_.size() == counts.size(), "{} experts, {} before", counts.size(), counts_.size());
  for (size_t j = 0; j < counts.size(); ++j) counts_[j] += counts[j];
  const double violation = MaxVio(counts);
  ++steps_;
  sum_ += violation;
  largest_ = std::max(largest_, violation);
}

}  // namespace tributary::client
