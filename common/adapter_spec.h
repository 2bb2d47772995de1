// Low-rank adapters of a job as its YAML describes them, the `model.adapter` key: beside each of the linear layers named by `targets` stands a product of
// small factors (common/adapter_layout.h); the layer's own weight is frozen. How the clients' factors are combined is the strategy's: its parameter
// `adapters`, an AdapterMode.
// Threads: values. Errors: INVALID_ARGUMENT with the key, what was expected and what came.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "common/yaml_reader.h"

namespace tributary {

// kind: adalora. Each layer has `rank` triplets to begin with; the server takes some away until target_rank a layer are left on average (Zhang et al.,
// ICLR 2023; aggregator/core/rank_allocator.h). What the paper counts in steps is counted in versions here.
struct AdaLoraSpec {
  int64_t target_rank = 8;                // at most `rank`
  int64_t init_versions = 0;              // at the beginning, with all triplets
  int64_t final_versions = 0;             // at the end, with those that are left then
  int64_t interval = 1;                   // versions between two allotments
  bool regrow = true;                     // triplets that are out train on and may come back (the paper's); false: they are out for good, and do not travel
  double beta1 = 0.85, beta2 = 0.85;      // smoothing of a weight's importance and of its uncertainty
  double orthogonal = 0.1;                // weight of the penalty on factors that are not orthogonal
  bool operator==(const AdaLoraSpec&) const = default;
};

struct AdapterSpec {
  std::string kind;                       // "lora" or "adalora"; empty: the whole model is trained
  int64_t rank = 8;                       // of the job's model: the largest of client_ranks
  std::vector<int64_t> client_ranks;      // rank: [2, 4, 8]: one for each client, in the order of the data's shards; empty: `rank` is everybody's
  double alpha = 16;
  std::vector<std::string> targets;       // layers whose name is, or ends with a dot and, one of these
  double dropout = 0;                     // of what goes into A, in training
  bool rank_stabilised = false;           // α/√r (Kalajdzievski 2023)
  AdaLoraSpec adalora;
  bool enabled() const { return !kind.empty(); }
  bool triplets() const { return kind == "adalora"; }
  double Scale() const;                   // α/r of the job's rank, which is every client's: their factors are summed as they are; adalora: α/(r + 1e-5)
  // INVALID_ARGUMENT: client_ranks ends before it.
  absl::StatusOr<int64_t> RankOf(int64_t client) const;
  bool operator==(const AdapterSpec&) const = default;
};

void ReadAdapter(YamlReader& top, std::string_view key, AdapterSpec* spec);
std::string CanonicalAdapter(const AdapterSpec& spec);  // flow style

}  // namespace tributary
