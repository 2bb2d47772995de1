#include "aggregator/coordinator/capacity_book.h"

#include <tuple>

namespace tributary::aggregator {

std::optional<double> CapacityBook::Find(const MeasuredCapacity& like) const {
  const auto circumstances = [](const MeasuredCapacity& c) { return std::tie(c.layout, c.strategy, c.shape, c.workers, c.reproducible); };
  const MeasuredCapacity* latest = nullptr;
  for (const MeasuredCapacity& known : all_) {
    if (circumstances(known) != circumstances(like)) continue;
    if (latest == nullptr || known.measured_us > latest->measured_us) latest = &known;
  }
  return latest == nullptr ? std::nullopt : std::optional(latest->updates);
}

}  // namespace tributary::aggregator
