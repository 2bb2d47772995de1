// Service capacities (MC, dataplane.md §9.1) that `tributary nodes calibrate` has measured on this node: what a job's plan may count on.
// A capacity is of one layout, strategy, arithmetic, shape and number of workers; nothing is inferred for others.
// Thread-safe (immutable).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tributary::aggregator {

struct MeasuredCapacity {
  std::string layout;    // fingerprint
  std::string strategy;
  std::string shape;     // flat, shard or tree
  uint32_t workers = 0;
  bool reproducible = false;
  double updates = 0;    // MC
  int64_t measured_us = 0;
};

class CapacityBook {
 public:
  CapacityBook() = default;
  explicit CapacityBook(std::vector<MeasuredCapacity> all) : all_(std::move(all)) {}
  // MC of what was measured last under the circumstances of `like` (whose own figures are not looked at).
  std::optional<double> Find(const MeasuredCapacity& like) const;
  bool empty() const { return all_.empty(); }

 private:
  std::vector<MeasuredCapacity> all_;
};

}  // namespace tributary::aggregator
