// Folds the updates of a recorded job (`record: true`) again, offline: the engine, reducers and server step of the recorded or of another
// strategy, from the recorded initial model, version by version with the recorded contributors.
//
// In reproducible mode the same strategy gives the same bits. Another strategy sees updates that were trained from the recorded models, not
// from its own. A synchronous strategy takes all of a version's updates as fresh; an asynchronous one commits by its own trigger.
// Borrows the store. Threads: thread-compatible. Errors: NOT_FOUND (no such job), FAILED_PRECONDITION (not recorded, or forgotten),
// INVALID_ARGUMENT (a strategy that needs numbers or vectors the updates do not have; named), DATA_LOSS.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "aggregator/state/state_store.h"
#include "common/job_spec.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace tributary::simulate {

struct ReplayedVersion {
  uint64_t version = 0;
  std::string sha256;
  std::string recorded_sha256;   // "" beyond the recorded versions
  uint64_t updates = 0;
};

struct ReplayResult {
  StrategySpec strategy;
  std::vector<ReplayedVersion> versions;   // from 1
  uint64_t refused = 0;                    // updates that the strategy would not have
  std::string why_refused;                 // the first reason
  FlatModel model;
};

// `strategy`: nothing for the recorded one.
absl::StatusOr<ReplayResult> Replay(const aggregator::StateStore& store, const std::string& job, const std::optional<StrategySpec>& strategy);

}  // namespace tributary::simulate
