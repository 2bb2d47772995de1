#include "client/torch/model_params.h"

#include <absl/strings/numbers.h>

#include <utility>

#include "common/check.h"
#include "common/suggest.h"

namespace tributary::client {
namespace {

constexpr int64_t kMaxCount = int64_t{1} << 24;  // widths and image sides; far above any sensible one, far below overflow
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

absl::StatusOr<ModelParams> ModelParams::Create(std::string model, std::string_view defaults, const ParamMap& given) {
  ModelParams params;
  params.model_ = std::move(model);
  std::vector<std::string> known;
  for (const std::string& item : Split(defaults, ',')) {
    const size_t equals = item.find('=');
    TRIB_CHECK(equals != std::string::npos, "models.def, {}: '{}' is not key=value", params.model_, item);
    known.push_back(item.substr(0, equals));
    params.values_[known.back()] = item.substr(equals + 1);
  }
  for (const auto& [key, value] : given) {
    if (!params.values_.contains(key)) {
      return InvalidArgument("model '{}' has no parameter '{}'{}; it has: {}", params.model_, key, DidYouMean(key, known), defaults);
    }
    params.values_[key] = value;
  }
  return params;
}

const std::string& ModelParams::Text(const std::string& key) const {
  const auto at = values_.find(key);
  TRIB_CHECK(at != values_.end(), "models.def, {}: no default for '{}'", model_, key);
  return at->second;
}

absl::StatusOr<int64_t> ModelParams::Count(const std::string& key) const {
  int64_t value = 0;
  if (!absl::SimpleAtoi(Text(key), &value) || value < 1 || value > kMaxCount) {
    return InvalidArgument("model '{}', parameter '{}': expected an integer from 1 to {}, got '{}'", model_, key, kMaxCount, Text(key));
  }
  return value;
}

absl::StatusOr<std::vector<int64_t>> ModelParams::Counts(const std::string& key, size_t extents) const {
  std::vector<int64_t> values;
  int64_t product = 1;
  bool good = true;
  for (const std::string& part : Split(Text(key), 'x')) {
    int64_t value = 0;
    good = good && absl::SimpleAtoi(part, &value) && value >= 1 && value <= kMaxCount && product <= kMaxProduct / value;
    if (!good) break;
    product *= value;
    values.push_back(value);
  }
  if (!good || (extents != 0 && values.size() != extents)) {
    const std::string count = extents == 0 ? std::string("one or more") : std::to_string(extents);
    return InvalidArgument("model '{}', parameter '{}': expected {} integers >= 1 joined by 'x' (product at most 2^32), got '{}'", model_,
                           key, count, Text(key));
  }
  return values;
}

absl::StatusOr<std::string> ModelParams::Choice(const std::string& key, const std::vector<std::string>& choices) const {
  for (const std::string& choice : choices) {
    if (Text(key) == choice) return choice;
  }
  return InvalidArgument("model '{}', parameter '{}': expected one of {}, got '{}'{}", model_, key, fmt::format("{}", fmt::join(choices, ", ")),
                         Text(key), DidYouMean(Text(key), choices));
}

}  // namespace tributary::client
