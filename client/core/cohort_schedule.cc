#include "client/core/cohort_schedule.h"

#include <algorithm>

#include "common/check.h"

namespace tributary::client {

CohortSchedule::CohortSchedule(std::span<const CohortClient> clients) {
  for (size_t i = 0; i < clients.size(); ++i) {
    const LocalSpec& local = clients[i].local;
    BatchOrder order(clients[i].indices.size(), static_cast<size_t>(local.batch), clients[i].seed);
    const uint64_t steps = local.steps > 0 ? static_cast<uint64_t>(local.steps) : static_cast<uint64_t>(local.epochs) * order.batches_per_epoch();
    // The last batch of an epoch is the longest where a rest of one joined it.
    batch_ = std::max({batch_, std::min(clients[i].indices.size(), static_cast<size_t>(local.batch)), order.SizeAt(order.batches_per_epoch() - 1)});
    places_.push_back({.member = i, .client = clients[i], .steps = steps, .order = std::move(order)});
  }
  std::stable_sort(places_.begin(), places_.end(), [](const Place& a, const Place& b) { return a.steps > b.steps; });
}

size_t CohortSchedule::training(uint64_t step) const {
  const auto first_done = std::partition_point(places_.begin(), places_.end(), [step](const Place& place) { return place.steps > step; });
  return static_cast<size_t>(first_done - places_.begin());
}

size_t CohortSchedule::BatchSize(size_t place, uint64_t step) const {
  const Place& at = places_[place];
  return step < at.steps ? at.order.SizeAt(step) : 0;
}

void CohortSchedule::Next(uint64_t steps, size_t width, std::span<int64_t> rows, std::span<double> shares, std::span<double> rates) {
  TRIB_CHECK(rows.size() == steps * width * batch_ && shares.size() == rows.size() && rates.size() == steps * width);
  std::fill(rows.begin(), rows.end(), 0);
  std::fill(shares.begin(), shares.end(), 0.0);
  std::fill(rates.begin(), rates.end(), 0.0);
  for (uint64_t s = 0; s < steps; ++s) {
    for (size_t p = 0; p < std::min(width, places_.size()); ++p) {
      Place& place = places_[p];
      if (next_ + s >= place.steps) break;  // nor do those after it
      const std::span<const uint32_t> positions = place.order.At(next_ + s);
      const size_t at = (s * width + p) * batch_;
      for (size_t i = 0; i < positions.size(); ++i) {
        rows[at + i] = place.client.indices[positions[i]];
        shares[at + i] = 1.0 / static_cast<double>(positions.size());
      }
      rates[s * width + p] = place.client.local.lr;
    }
  }
  next_ += steps;
}

}  // namespace tributary::client
