// Examples in memory, and views of some of them. x is row-major float [examples, …example_shape]; labels are integers
// (classification) or floats (regression), never both. A view shares its Dataset's storage.
// Threads: immutable once built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

class AnalyticProblem;

struct Examples {
  std::vector<float> x;                 // examples × example_elements
  std::vector<int64_t> example_shape;   // {1, 28, 28} for an image, {features} for a table row
  std::vector<int64_t> labels;          // class per example, or empty
  std::vector<float> targets;           // regression value per example, or empty
  int64_t classes = 0;                  // 1 + largest label; 0 for regression
  size_t count() const { return labels.empty() ? targets.size() : labels.size(); }
  size_t example_elements() const {
    size_t n = 1;
    for (int64_t e : example_shape) n *= static_cast<size_t>(e);
    return n;
  }
};

struct Dataset {
  std::shared_ptr<const Examples> all;  // shared: ten identities of one machine hold the files once
  std::vector<uint32_t> indices;        // the examples of this view, in order
  // Of an analytic model (analytic/problem.h), instead of examples: the client's own problem, or all clients' to evaluate on.
  std::vector<std::shared_ptr<const AnalyticProblem>> problems{};
  size_t count() const { return indices.size(); }
};

// Splits [0, labels.size()) into `shards` disjoint index lists that cover it. Deterministic in (kind, parameters, seed); the same on
// every machine. kinds: iid (shuffled, equal sizes ± 1) · dirichlet (class proportions per shard drawn from Dir(alpha), Hsu et al.
// 2019; every shard gets at least one example) · shards (label-sorted pieces, shards_per_client each, McMahan et al. 2017).
// For regression (labels empty, `count` examples) only iid is allowed. INVALID_ARGUMENT: more shards than examples, by_file.
absl::StatusOr<std::vector<std::vector<uint32_t>>> Partition(const PartitionSpec& spec, std::span<const int64_t> labels,
                                                             size_t count, int64_t shards, int64_t seed);

}  // namespace tributary::client
