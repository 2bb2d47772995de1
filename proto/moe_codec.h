// Statistics of mixtures of experts between wire and common/moe_stats.h, with the checks that need no job: lists bounded, numbers finite and
// not negative, no expert or bin with more tokens than there were, no score above 1. Whether the sizes are those of the job's model, and an expert's
// tokens add up, is aggregator/core/moe_state.h's business.
// Errors: INVALID_ARGUMENT naming the layer, what was expected and what came. Threads: pure.
#pragma once

#include "common/moe_stats.h"
#include "common/status.h"
#include "tributary/v1/moe.pb.h"

namespace tributary {

inline constexpr int kMaxMoeLayers = 1024;
inline constexpr int kMaxExperts = 1024;
inline constexpr int kMaxMarginBins = 256;

absl::StatusOr<MoeStats> MoeStatsFromProto(const v1::MoeStats& message);
v1::MoeStats MoeStatsToProto(const MoeStats& stats);

absl::StatusOr<GlobalMoe> GlobalMoeFromProto(const v1::GlobalMoe& message);
v1::GlobalMoe GlobalMoeToProto(const GlobalMoe& load);

}  // namespace tributary
