// What a client keeps between its updates of a job (error feedback and the like), on disk, in two phases (algorithms.md §1.7): a new value
// is *staged* with the update it belongs to, and counts only once that update is in a version. So the client's state and the server's sums
// never part, whatever crashes or is refused.
//
//   STATE/<client>/state/<job>/<name>.v<version>     16 bytes XXH3-128 of the rest, then the value; counted by that version of the job
//   STATE/<client>/state/<job>/<name>.<update hex>   staged
//
// Of several versions of a value the newest holds: the older ones are on their way out. Stage before the update goes into the outbox;
// Promote or Discard before it leaves it. All may be repeated after a crash. Values staged for updates that are not in the outbox belong to
// nobody: Sweep removes them.
// Threads: safe for different jobs; one job's calls must not overlap. Errors: DATA_LOSS for a damaged file, which goes with the
// promotion of the next value; those of the file system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "client/core/local_rule.h"
#include "common/ids.h"
#include "common/status.h"

namespace tributary::client {

struct StateValue {
  uint64_t version = 0;  // that counted it
  std::vector<std::byte> bytes;
};

class StateFiles {
 public:
  // `folder` is STATE/<client>/state; it is made at the first Stage.
  explicit StateFiles(std::filesystem::path folder) : folder_(std::move(folder)) {}

  // Nothing if there is none. `name` has no dot.
  absl::StatusOr<std::optional<StateValue>> Current(const std::string& job, const std::string& name) const;
  absl::Status Stage(const std::string& job, const std::string& name, const UpdateId& update, std::span<const std::byte> value) const;
  // The values staged for `update` become current, as `version` has counted it, or go. Nothing staged: nothing done.
  absl::Status Promote(const std::string& job, const UpdateId& update, uint64_t version) const;
  absl::Status Discard(const std::string& job, const UpdateId& update) const;
  // Removes what is staged for updates other than `kept`.
  absl::Status Sweep(const std::set<UpdateId>& kept) const;

 private:
  absl::Status Settle(const std::string& job, const UpdateId& update, std::optional<uint64_t> version) const;
  const std::filesystem::path folder_;
};

// What the strategy of a job keeps on a client (client/core/local_rule.h) as one such value, "strategy": a safetensors file of F64 vectors.
std::string EncodeClientState(const ClientState& state);
// Empty, of version 0, if there is none. DATA_LOSS also for a value that is no such file.
absl::StatusOr<ClientState> ReadClientState(const StateFiles& files, const std::string& job);
inline constexpr char kStrategyState[] = "strategy";

}  // namespace tributary::client
