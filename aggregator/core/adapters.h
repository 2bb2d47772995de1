// `strategy: {adapters: …}`: how the factors of the clients' low-rank adapters (common/adapter_layout.h) become one version. moe_lora.md §5.2; s = α/r is
// one number for the whole job, so that the factors of all clients are in the same units and it cancels.
//
//   fedit     B⁺ = Σp·B, A⁺ = Σp·A: not Σp·B·A, and with `adapter_error: measure` the difference is measured each version (arXiv 2305.05644)
//   ffa       A stays as it was drawn, B⁺ = Σp·B: exact (Sun et al., ICLR 2024)
//   rolora    B moves with odd versions, A with even ones: exact each time (Chen et al. 2024, arXiv 2502.01755)
//   flora     residual += Σp·B·A, then fresh adapters, A uniform in ±1/√in and B = 0: exact, any rank (arXiv 2409.05976)
//   flexlora  the best approximation of Σp·B·A of the job's rank, any rank: exact up to that (arXiv 2402.11505)
//   fedex     fedit, and residual += Σp·B·A − B⁺·A⁺: exact (arXiv 2410.09432)
//   fedsb     B·R·A with B and A as drawn, R⁺ = Σp·R: exact (arXiv 2502.15436; drawn at random here, not taken from a first gradient)
//
// Triplets (adalora) go with fedex, and with fedit where its error is measured: their e, importance and factors are averaged one by one, and then the budget
// takes some away (rank_allocator.h).
//
// fedit, ffa and fedsb are element-wise means, so that any strategy makes its step of them; the others are steps of their own and go with
// fedavg. flora, flexlora, fedex and a measured fedit keep updates whole (StrategyTrait::kNeedsAll).
// Threads: immutable. Errors: INVALID_ARGUMENT with the parameter and the reason.
#pragma once

#include <memory>

#include "aggregator/core/strategy.h"
#include "aggregator/core/strategy_params.h"

namespace tributary::aggregator {

// Name of what is measured of a version: RelativeError (lora_product.h).
inline constexpr char kAdapterError[] = "adapter_error";

ParamInfo AdaptersParam();
ParamInfo AdapterErrorParam();  // of fedavg

// `plain`, made from `spec`, for a model of adapters; `mode` is not kNone.
absl::StatusOr<std::unique_ptr<Strategy>> WithAdapters(AdapterMode mode, const StrategySpec& spec, std::unique_ptr<Strategy> plain);

// What of a job does not go with its adapters.
absl::Status CheckAdapters(const JobSpec& spec, const Strategy& strategy, const TensorLayout& model);

// Whether an update that starts from `version` moves the factor whose turn it is; anything but rolora: yes. INVALID_ARGUMENT naming both.
absl::Status CheckPhase(const Strategy& strategy, const Scalars& scalars, uint64_t version);

}  // namespace tributary::aggregator
