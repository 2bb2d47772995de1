// Reads one map of a job's YAML, with checks of ranges and of words that several keys need.
// `Fail` after a range check is a no-op when something failed before. Threads and errors: as YamlReader.
#pragma once

#include <absl/time/time.h>
#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/yaml_reader.h"

namespace tributary {

class YamlSection {
 public:
  explicit YamlSection(YamlReader reader) : reader_(std::move(reader)) {}
  YamlReader& reader() { return reader_; }
  bool Has(std::string_view key) const { return reader_.Has(key); }

  void Int(std::string_view key, int64_t* out, int64_t low, int64_t high, YamlReader::Presence presence = YamlReader::kOptional);
  // `range` names what `in_range` checks.
  template <typename InRange>
  void Double(std::string_view key, double* out, std::string_view range, InRange in_range) {
    reader_.Double(key, out);
    if (Has(key) && !in_range(*out)) reader_.Fail(key, fmt::format("expected a number {}, got {}", range, *out));
  }
  void Choice(std::string_view key, std::string* out, const std::vector<std::string>& known);
  // A word, one of which (`counted`) may bring a number: "eager", "batch:4". nullopt: no number given, or an error recorded.
  std::optional<int64_t> WordWithCount(std::string_view key, std::string* word, const std::vector<std::string>& known, const std::string& counted, int64_t low,
                                       int64_t high);
  // Whole milliseconds of a key in seconds (`unit_ms` 1000) or milliseconds (1), so that the canonical text gives the same again.
  void Milliseconds(std::string_view key, absl::Duration* out, double unit_ms, double low, double high);
  void Fail(std::string_view key, const std::string& message) { reader_.Fail(key, message); }

 private:
  YamlReader reader_;
};

// A double-quoted YAML scalar. The reader allows no control characters, so two escapes are enough.
std::string Quoted(std::string_view text);

}  // namespace tributary
