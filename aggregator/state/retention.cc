#include "aggregator/state/retention.h"

#include <fmt/format.h>

namespace tributary::aggregator {

bool KeepsTensors(const RetentionOptions& options, uint64_t version, uint64_t first, uint64_t latest) {
  if (options.newest == 0 || version == first || version > latest) return true;
  if (latest - version < options.newest) return true;
  return options.every != 0 && version % options.every == 0;
}

std::string KeptText(const std::vector<v1::VersionRow>& rows) {
  constexpr size_t kMostRanges = 20;
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const v1::VersionRow& row : rows) {
    const uint64_t version = row.info().version();
    if (row.info().pruned_us() != 0) continue;
    if (!ranges.empty() && ranges.back().second + 1 == version) {
      ranges.back().second = version;
    } else {
      ranges.emplace_back(version, version);
    }
  }
  std::string text;
  for (size_t i = 0; i < ranges.size(); ++i) {
    // The newest are what is asked for most.
    if (ranges.size() > kMostRanges && i == kMostRanges / 2) {
      text += ", …";
      i = ranges.size() - kMostRanges / 2;
    }
    const auto& [begin, end] = ranges[i];
    text += fmt::format("{}{}", text.empty() ? "" : ", ", begin);
    if (end != begin) text += fmt::format("{}{}", end == begin + 1 ? ", " : "–", end);
  }
  return text.empty() ? "none" : text;
}

}  // namespace tributary::aggregator
