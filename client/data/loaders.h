// What the loaders of datasets.def share. A loader reads one split of a source; see data.h for the contract.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "client/data/data.h"

namespace tributary::client {

using DatasetLoader = absl::StatusOr<LoadedData> (*)(const DataSpec& spec, Split split);

// Limit on the examples of one split in memory, and on any one file (inflated).
constexpr size_t kMaxDataBytes = size_t{4} << 30;

// Files of a table-like source: what `split` is to be read from.
struct SourceFiles {
  std::vector<std::filesystem::path> files;  // in name order; at least one
  bool hold_out = false;  // there is no test file: both splits come from `files`, divided by HeldOut
};
absl::StatusOr<SourceFiles> FindFiles(const DataSpec& spec, Split split, const std::string& extension);

// Appends one file's examples to `all` and its index list to `files`. INVALID_ARGUMENT where shape or kind differ from the files
// before; RESOURCE_EXHAUSTED over kMaxDataBytes.
absl::Status AppendExamples(const std::string& origin, Examples part, Examples& all, std::vector<std::vector<uint32_t>>& files);

// Ends a load: sets `classes`, and takes the split's part of the examples where `hold_out` says that both splits share the files.
absl::StatusOr<LoadedData> FinishLoad(const DataSpec& spec, Split split, bool hold_out, Examples all,
                                      std::vector<std::vector<uint32_t>> files);

}  // namespace tributary::client
