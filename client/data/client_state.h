// What a client keeps between its updates of a job (error feedback and the like), on disk, in two phases (algorithms.md §1.7): a new value
// is *staged* with the update it belongs to, and counts only once that update is in a version. So the client's state and the server's sums
// never part, whatever crashes or is refused.
//
//   STATE/<client>/state/<job>/<name>             16 bytes XXH3-128 of the rest, then the value
//   STATE/<client>/state/<job>/<name>.<update hex>  staged
//
// Stage before the update goes into the outbox; Promote or Discard before it leaves it. All may be repeated after a crash. Values staged
// for updates that are not in the outbox belong to nobody: Sweep removes them.
// Threads: safe for different jobs; one job's calls must not overlap. Errors: DATA_LOSS for a damaged file, which is set aside by Promote
// of the next value; those of the file system.
#pragma once

#include <cstddef>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/status.h"

namespace tributary::client {

class StateFiles {
 public:
  // `folder` is STATE/<client>/state; it is made at the first Stage.
  explicit StateFiles(std::filesystem::path folder) : folder_(std::move(folder)) {}

  // Empty if there is none.
  absl::StatusOr<std::vector<float>> Current(const std::string& job, const std::string& name) const;
  absl::Status Stage(const std::string& job, const std::string& name, const UpdateId& update, std::span<const float> value) const;
  // The values staged for `update` become current, or go. Nothing staged: nothing done.
  absl::Status Promote(const std::string& job, const UpdateId& update) const;
  absl::Status Discard(const std::string& job, const UpdateId& update) const;
  // Removes what is staged for updates other than `kept`.
  absl::Status Sweep(const std::set<UpdateId>& kept) const;

 private:
  absl::Status Settle(const std::string& job, const UpdateId& update, bool promote) const;
  const std::filesystem::path folder_;
};

}  // namespace tributary::client
