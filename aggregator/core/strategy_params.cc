#include "aggregator/core/strategy_params.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/suggest.h"

namespace tributary::aggregator {

bool RealRange::Contains(double value) const {
  if (std::isnan(value)) return false;
  return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
}

std::string RealRange::ToString() const {
  return fmt::format("{}{}, {}{}", low_open ? "(" : "[", low, high, high_open ? ")" : "]");
}

ParamReader::ParamReader(const StrategySpec& spec, const std::vector<ParamInfo>& params) : spec_(spec), params_(params) {
  std::vector<std::string> known;
  for (const ParamInfo& info : params_) known.push_back(info.name);
  for (const auto& [name, value] : spec_.params) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    status_ = InvalidArgument("strategy '{}' has no parameter '{}'{}; it has: {}", spec_.name, name, DidYouMean(name, known),
                              known.empty() ? std::string("none") : fmt::format("{}", fmt::join(known, ", ")));
    return;
  }
}

const ParamInfo& ParamReader::Info(const std::string& name) const {
  const auto it = std::find_if(params_.begin(), params_.end(), [&](const ParamInfo& info) { return info.name == name; });
  TRIB_CHECK(it != params_.end(), "strategy '{}' reads parameter '{}', which its list lacks", spec_.name, name);
  return *it;
}

std::string ParamReader::Text(const std::string& name) const {
  const ParamInfo& info = Info(name);
  const auto it = spec_.params.find(name);
  return it == spec_.params.end() ? info.default_value : it->second;
}

void ParamReader::Fail(const ParamInfo& info, const std::string& got) {
  if (!status_.ok()) return;
  status_ = InvalidArgument("strategy '{}': {} must be in {}, got '{}'", spec_.name, info.name, info.range, got);
}

double ParamReader::Real(const std::string& name, const RealRange& range) {
  const std::string text = Text(name);
  double value = 0;
  if (absl::SimpleAtod(text, &value) && range.Contains(value)) return value;
  Fail(Info(name), text);
  TRIB_CHECK(absl::SimpleAtod(Info(name).default_value, &value), "default of '{}'", name);
  return value;
}

std::string ParamReader::Choice(const std::string& name) {
  const std::string text = Text(name);
  const ParamInfo& info = Info(name);
  const std::vector<std::string> words = absl::StrSplit(info.range, '|');
  if (std::find(words.begin(), words.end(), text) != words.end()) return text;
  Fail(info, text);
  return info.default_value;
}

absl::Status ParamReader::Finish() const { return status_; }

ParamInfo ServerLrParam(const std::string& default_value) {
  return {.name = "server_lr", .default_value = default_value, .range = kServerLrRange.ToString(),
          .help = "server learning rate: how much of the step is taken"};
}

ParamInfo WeightingParam(const std::string& default_value) {
  return {.name = "weighting", .default_value = default_value, .range = "examples|uniform",
          .help = "weight of an update: its client's examples, or 1"};
}

}  // namespace tributary::aggregator
