#include "common/yaml_section.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cmath>

#include "common/suggest.h"

namespace tributary {
namespace {

std::string Listed(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

}  // namespace

void YamlSection::Int(std::string_view key, int64_t* out, int64_t low, int64_t high, YamlReader::Presence presence) {
  reader_.Int(key, out, presence);
  if (Has(key) && (*out < low || *out > high)) {
    reader_.Fail(key, fmt::format("expected {} to {}, got {}", low, high, *out));
  }
}

void YamlSection::Choice(std::string_view key, std::string* out, const std::vector<std::string>& known) {
  reader_.String(key, out);
  if (!Has(key) || std::find(known.begin(), known.end(), *out) != known.end()) return;
  reader_.Fail(key, fmt::format("expected {}, got '{}'{}", Listed(known), *out, DidYouMean(*out, known)));
}

std::optional<int64_t> YamlSection::WordWithCount(std::string_view key, std::string* word, const std::vector<std::string>& known,
                                     const std::string& counted, int64_t low, int64_t high) {
  std::string text;
  reader_.String(key, &text);
  const size_t colon = text.find(':');
  *word = text.substr(0, colon);
  if (std::find(known.begin(), known.end(), *word) == known.end()) {
    reader_.Fail(key, fmt::format("expected {}, got '{}'{}", Listed(known), text, DidYouMean(*word, known)));
    return std::nullopt;
  }
  if (colon == std::string::npos) return std::nullopt;
  const std::string digits = text.substr(colon + 1);
  if (*word != counted) {
    reader_.Fail(key, fmt::format("{} takes no number, got '{}'", *word, text));
    return std::nullopt;
  }
  int64_t count = 0;
  if (!absl::SimpleAtoi(digits, &count) || count < low || count > high) {
    reader_.Fail(key, fmt::format("expected {}:N with N from {} to {}, got '{}'", counted, low, high, text));
    return std::nullopt;
  }
  return count;
}

void YamlSection::Milliseconds(std::string_view key, absl::Duration* out, double unit_ms, double low, double high) {
  double value = 0;
  reader_.Double(key, &value);
  if (!Has(key)) return;
  if (!(value >= low && value <= high)) {
    reader_.Fail(key, fmt::format("expected a number in [{}, {}], got {}", low, high, value));
    return;
  }
  *out = absl::Milliseconds(std::llround(value * unit_ms));
}

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted.push_back('\\');
    quoted.push_back(c);
  }
  return quoted + "\"";
}

}  // namespace tributary
