#include "aggregator/daemon/capacity_file.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "common/file.h"

namespace tributary::aggregator {
namespace {

constexpr size_t kMostBytes = 1 << 20;

absl::StatusOr<MeasuredCapacity> ReadOne(const std::filesystem::path& file) {
  TRIB_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMostBytes));
  const nlohmann::json document = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) return InvalidArgument("{}: expected a JSON object, as `tributary nodes calibrate` writes it", file.string());
  const auto bad = [&](const char* key, const char* expected) {
    return InvalidArgument("{}: {}: expected {}, got {}", file.string(), key, expected, document.contains(key) ? document[key].dump() : "nothing");
  };
  for (const char* key : {"layout", "strategy", "shape"}) {
    if (!document.contains(key) || !document[key].is_string()) return bad(key, "a text");
  }
  if (!document.contains("workers") || !document["workers"].is_number_unsigned() || document["workers"] > std::numeric_limits<uint32_t>::max()) {
    return bad("workers", "a number of workers");
  }
  if (!document.contains("reproducible") || !document["reproducible"].is_boolean()) return bad("reproducible", "true or false");
  if (!document.contains("measured_us") || !document["measured_us"].is_number_integer()) return bad("measured_us", "a time");
  if (!document.contains("capacity_updates") || !document["capacity_updates"].is_number()) return bad("capacity_updates", "a number above 0");
  MeasuredCapacity capacity;
  capacity.updates = document["capacity_updates"].get<double>();
  if (!std::isfinite(capacity.updates) || capacity.updates <= 0) return bad("capacity_updates", "a number above 0");
  capacity.layout = document["layout"].get<std::string>();
  capacity.strategy = document["strategy"].get<std::string>();
  capacity.shape = document["shape"].get<std::string>();
  capacity.workers = document["workers"].get<uint32_t>();
  capacity.reproducible = document["reproducible"].get<bool>();
  capacity.measured_us = document["measured_us"].get<int64_t>();
  return capacity;
}

}  // namespace

absl::StatusOr<std::vector<MeasuredCapacity>> ReadCapacities(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> files = {path};
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    files.clear();
    for (auto at = std::filesystem::directory_iterator(path, error); !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
      if (at->path().extension() == ".json") files.push_back(at->path());
    }
    if (error) return InvalidArgument("{}: {}", path.string(), error.message());
    if (files.empty()) return NotFound("{}: expected *.json files of calibrations, there are none", path.string());
    std::sort(files.begin(), files.end());
  }
  std::vector<MeasuredCapacity> all;
  for (const std::filesystem::path& file : files) {
    TRIB_ASSIGN_OR_RETURN(MeasuredCapacity one, ReadOne(file));
    all.push_back(std::move(one));
  }
  return all;
}

}  // namespace tributary::aggregator
