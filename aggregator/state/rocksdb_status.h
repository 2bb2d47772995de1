// The one place where RocksDB's errors become ours. `what` names the object: "store '/x': job 'a' version 3".
// Pure.
#pragma once

#include <rocksdb/status.h>

#include <string>
#include <string_view>

#include "common/status.h"

namespace tributary::aggregator {

inline absl::Status FromRocksDb(const rocksdb::Status& status, std::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = status.ToString();
  if (status.IsNotFound()) return NotFound("{}: not in the store", what);
  if (status.IsCorruption()) return DataLoss("{}: {}", what, text);
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit) return ResourceExhausted("{}: the disk is full: {}", what, text);
  if (status.IsPathNotFound()) return DataLoss("{}: a file of the store is missing: {}", what, text);
  // RocksDB reports a held LOCK as an I/O error without a subcode.
  const bool held = status.IsIOError() && (text.find("lock hold by") != std::string::npos || text.find("While lock file") != std::string::npos);
  if (held || status.IsBusy() || status.IsTimedOut() || status.IsTryAgain()) return Unavailable("{}: {}", what, text);
  if (status.IsMemoryLimit()) return ResourceExhausted("{}: {}", what, text);
  return Internal("{}: {}", what, text);
}

}  // namespace tributary::aggregator
