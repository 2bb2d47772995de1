#include "common/named_params.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/suggest.h"

namespace tributary {
namespace {

constexpr int64_t kMaxParam = int64_t{1} << 24;  // widths and image sides; far above any sensible one, far below overflow
constexpr int64_t kMaxProduct = int64_t{1} << 32;

std::vector<std::string> Split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

}  // namespace

absl::StatusOr<NamedParams> NamedParams::Create(std::string owner, std::string_view defaults, const ParamMap& given) {
  NamedParams params;
  params.owner_ = std::move(owner);
  std::vector<std::string> known;
  for (const std::string& item : defaults.empty() ? std::vector<std::string>() : Split(defaults, ',')) {
    const size_t equals = item.find('=');
    TRIB_CHECK(equals != std::string::npos, "{}: '{}' is not key=value", params.owner_, item);
    known.push_back(item.substr(0, equals));
    params.values_[known.back()] = item.substr(equals + 1);
  }
  for (const auto& [key, value] : given) {
    const size_t dot = key.find('.');
    const bool grouped = dot != std::string::npos && params.values_.contains(key.substr(0, dot) + ".*");
    if (!params.values_.contains(key) && !grouped) {
      return InvalidArgument("{} has no parameter '{}'{}; it has: {}", params.owner_, key, DidYouMean(key, known), defaults.empty() ? "none" : defaults);
    }
    params.values_[key] = value;
  }
  return params;
}

const std::string& NamedParams::Text(const std::string& key) const {
  const auto at = values_.find(key);
  TRIB_CHECK(at != values_.end(), "{}: no default for '{}'", owner_, key);
  return at->second;
}

absl::StatusOr<int64_t> NamedParams::Count(const std::string& key) const {
  int64_t value = 0;
  if (!absl::SimpleAtoi(Text(key), &value) || value < 1 || value > kMaxParam) {
    return InvalidArgument("{}, parameter '{}': expected an integer from 1 to {}, got '{}'", owner_, key, kMaxParam, Text(key));
  }
  return value;
}

absl::StatusOr<std::vector<int64_t>> NamedParams::Counts(const std::string& key, size_t extents) const {
  std::vector<int64_t> values;
  int64_t product = 1;
  bool good = true;
  for (const std::string& part : Split(Text(key), 'x')) {
    int64_t value = 0;
    good = good && absl::SimpleAtoi(part, &value) && value >= 1 && value <= kMaxParam && product <= kMaxProduct / value;
    if (!good) break;
    product *= value;
    values.push_back(value);
  }
  if (!good || (extents != 0 && values.size() != extents)) {
    const std::string count = extents == 0 ? std::string("one or more") : std::to_string(extents);
    return InvalidArgument("{}, parameter '{}': expected {} integers >= 1 joined by 'x' (product at most 2^32), got '{}'", owner_,
                           key, count, Text(key));
  }
  return values;
}

std::string NamedParams::NameOf(const std::string& group) const {
  const auto named = values_.find(group + ".name");
  return named != values_.end() ? named->second : Text(group);
}

ParamMap NamedParams::Group(const std::string& group) const {
  ParamMap inner;
  const std::string prefix = group + ".";
  for (const auto& [key, value] : values_) {
    if (key.rfind(prefix, 0) == 0 && key != prefix + "name" && key != prefix + "*") inner[key.substr(prefix.size())] = value;
  }
  return inner;
}

absl::StatusOr<double> NamedParams::Number(const std::string& key, double low, double high) const {
  double value = 0;
  if (!absl::SimpleAtod(Text(key), &value) || !(value >= low && value <= high)) {
    return InvalidArgument("{}, parameter '{}': expected a number from {} to {}, got '{}'", owner_, key, low, high, Text(key));
  }
  return value;
}

absl::StatusOr<bool> NamedParams::Flag(const std::string& key) const {
  if (Text(key) == "true") return true;
  if (Text(key) == "false") return false;
  return InvalidArgument("{}, parameter '{}': expected true or false, got '{}'", owner_, key, Text(key));
}

absl::StatusOr<size_t> NamedParams::Choice(const std::string& key, const std::vector<std::string>& choices) const {
  const auto at = std::find(choices.begin(), choices.end(), Text(key));
  if (at != choices.end()) return static_cast<size_t>(at - choices.begin());
  return InvalidArgument("{}, parameter '{}': expected one of {}, got '{}'{}", owner_, key, fmt::format("{}", fmt::join(choices, ", ")),
                         Text(key), DidYouMean(Text(key), choices));
}

}  // namespace tributary
