// AdaLoRA's rank budget over all adapters of a job: how many triplets are left at each version, and which. Sources: Zhang et al., ICLR 2023, equations (8) to
// (12) and (13); schedule and masks as PEFT has them. moe_lora.md §5.3.
//
// b(t), t the version that is made, T the last one: b₀ = all triplets while t <= init_versions, b_T = target_rank a layer from T − final_versions on, and
// int(b_T + (b₀ − b_T)·(1 − (t − init)/(T − final − init))³) between. Every `interval` versions the b(t) triplets of the largest importance S keep their e, the
// others' becomes 0; clients train all of them on, so that one of those may come back. At T − final_versions the pattern is fixed: the mask keeps it.
// With `regrow: false` (own) the mask keeps it from each allotment on, who is out is out for good, and updates shrink with the budget (common/live_triplets.h).
// What decides, the clients' mean importance and the mask, are tensors of the model (common/adapter_layout.h): part of every version, equal after restarts and
// in replays. Of equal scores the earlier triplet stays, where the original would lose both.
// Threads: pure. Errors: none, layouts are checked by FindAdapters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/adapter_layout.h"
#include "common/job_spec.h"
#include "common/tensor_layout.h"

namespace tributary::aggregator {

// Name of what is measured of a version: triplets that kept their e.
inline constexpr char kAdapterTriplets[] = "adapter_triplets";

struct RankSchedule {
  int64_t versions = 0;  // T
  int64_t init_versions = 0;
  int64_t final_versions = 0;  // init + final < T
  int64_t interval = 1;
  int64_t target_rank = 0;
  bool regrow = true;
  static RankSchedule Of(const JobSpec& spec);
};

struct RankBudget {
  int64_t triplets = 0;
  bool allots = false;  // whether it takes effect at this t
};
// `initial`: b₀, `target`: b_T, both of all layers.
RankBudget BudgetAt(const RankSchedule& schedule, int64_t initial, int64_t target, int64_t t);

// Of each whether it is among the `count` largest.
std::vector<bool> Largest(std::span<const double> scores, size_t count);

// Has `next`, version `version` of a model of triplets as the server step has left it, obey the budget.
void AllotRanks(const RankSchedule& schedule, std::span<const AdapterPair> pairs, const TensorLayout& model, uint64_t version, std::span<std::byte> next,
                std::map<std::string, double>* measured);

}  // namespace tributary::aggregator
