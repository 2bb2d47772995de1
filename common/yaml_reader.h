// Strict reading of a YAML mapping: every key must be asked for, every value must have the asked type; what is left over is an
// error that names line, column and the nearest known key. No yaml-cpp type or exception leaves this file pair.
//
//   YamlReader reader = …;
//   reader.String("name", &spec.name, YamlReader::kRequired);
//   YamlReader cohort = reader.Map("cohort");
//   cohort.Int("size", &spec.cohort.size);
//   return reader.Finish();        // the first error met, or an unknown key, of this map and of all maps below it
//
// Errors are sticky: after the first, later calls do nothing. Messages: "job.yaml:12:3: cohort.size: expected an integer, got
// 'ten'". Limits: 1 MiB of text, depth 32, aliases refused (they can explode). Thread-compatible.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace tributary {

class YamlReader {
 public:
  enum Presence { kOptional, kRequired };

  // `origin` (a file name or "<stdin>") begins every message. Errors: INVALID_ARGUMENT for bad YAML or a top that is no map.
  static absl::StatusOr<YamlReader> Parse(std::string_view text, std::string origin);

  // Each leaves `*out` untouched when the key is absent.
  void String(std::string_view key, std::string* out, Presence presence = kOptional);
  void Bool(std::string_view key, bool* out, Presence presence = kOptional);
  void Int(std::string_view key, int64_t* out, Presence presence = kOptional);
  void Double(std::string_view key, double* out, Presence presence = kOptional);  // finite
  void StringList(std::string_view key, std::vector<std::string>* out, Presence presence = kOptional);
  // A list of lists of integers.
  void IntLists(std::string_view key, std::vector<std::vector<int64_t>>* out);
  // All of the map at `key` as text, for parameters whose names the caller checks later: single values, and of a map of them each as "key.name".
  void Scalars(std::string_view key, std::map<std::string, std::string>* out);
  // Scalars of *this* map not read so far (consumes them). Of a map of scalars each as "key.name", of a list one text with commas.
  void RemainingScalars(std::map<std::string, std::string>* out);
  // The map at `key`; an absent one gives an empty map whose reads all report absence. `present` tells which.
  YamlReader Map(std::string_view key, bool* present = nullptr);
  // A key that exists in the format but not in this release: an error "`key`: not supported yet".
  void Unsupported(std::string_view key);
  bool Has(std::string_view key) const;
  // Whether `key` has a single value (not a map, not a list): for keys that allow a short form. Does not consume it.
  bool IsScalar(std::string_view key) const;

  // Records an error about `key`'s value at its line and column; for ranges the caller checks.
  void Fail(std::string_view key, const std::string& message);
  absl::Status Finish();

 private:
  struct Node;
  explicit YamlReader(std::shared_ptr<Node> node);
  std::shared_ptr<Node> node_;  // shared: a child map reports into its parent's error
};

}  // namespace tributary
