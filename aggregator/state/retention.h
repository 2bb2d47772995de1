// What a store keeps of a job's past, and for how long. The manifests of all versions stay, so the hash chain and the contributors of
// every version can be told for ever; what grows with models and updates goes:
//   tensors and strategy vectors of versions that are neither among the newest `newest`, nor every `every`-th, nor the first, nor the
//   one from which the clients' states began;
//   dedupe rows of a version once no update that they could stop would be taken any more, and `dedupe_rows` have passed since
//   (until then a client that asks is told the truth; safety does not depend on the clock).
// Source: reliability.md §2 ("Dedupe rows stay bounded").
// Pure. Threads: functions are safe.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "tributary/v1/store.pb.h"

namespace tributary::aggregator {

struct RetentionOptions {
  uint64_t newest = 0;                           // 0: all; else at least kLeastNewest
  uint64_t every = 0;                            // 0: none besides
  absl::Duration dedupe_rows = absl::Hours(7 * 24);
};

// The latest version is what the job goes on from; the one before it may be on its way to evaluators.
inline constexpr uint64_t kLeastNewest = 2;

bool KeepsTensors(const RetentionOptions& options, uint64_t version, uint64_t first, uint64_t latest);

// "0, 10, 20, 95–100": versions whose tensors are there.
std::string KeptText(const std::vector<v1::VersionRow>& rows);

}  // namespace tributary::aggregator
