// Reads what `tributary nodes calibrate --out FILE` writes.
// Errors: NOT_FOUND for a path that is not there; INVALID_ARGUMENT naming file and key for a document that is none of these; for a folder,
// NOT_FOUND when it has no *.json file.
#pragma once

#include <filesystem>
#include <vector>

#include "aggregator/coordinator/capacity_book.h"
#include "common/status.h"

namespace tributary::aggregator {

// `path`: such a file, or a folder of *.json files.
absl::StatusOr<std::vector<MeasuredCapacity>> ReadCapacities(const std::filesystem::path& path);

}  // namespace tributary::aggregator
