// The parameters of something with a line in a .def table (a zoo model, a router) as text, merged with the defaults of that line and read
// with checks.
// Errors: INVALID_ARGUMENT naming owner, parameter, expected and got; unknown keys with the nearest known one.
// Threads: immutable once made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/job_spec.h"
#include "common/status.h"

namespace tributary {

class NamedParams {
 public:
  // A default "name.*=" stands for a group: any "name.key" may be given, and whoever takes the group checks its keys.
  // `owner` as messages call it: "model 'cnn'". `defaults` is "key=value,key=value": every parameter it has; empty: none.
  static absl::StatusOr<NamedParams> Create(std::string owner, std::string_view defaults, const ParamMap& given);

  // An integer in [1, 2^24].
  absl::StatusOr<int64_t> Count(const std::string& key) const;
  // Counts joined by x, "1x28x28"; `extents` of them, or any number >= 1 if 0. Product at most 2^32.
  absl::StatusOr<std::vector<int64_t>> Counts(const std::string& key, size_t extents) const;
  // Of a group: what "name" or "name.name" says, and the other keys of it without their prefix.
  std::string NameOf(const std::string& group) const;
  ParamMap Group(const std::string& group) const;
  // A finite number in [low, high].
  absl::StatusOr<double> Number(const std::string& key, double low, double high) const;
  // "true" or "false".
  absl::StatusOr<bool> Flag(const std::string& key) const;
  // One of `choices`: its place among them.
  absl::StatusOr<size_t> Choice(const std::string& key, const std::vector<std::string>& choices) const;

 private:
  const std::string& Text(const std::string& key) const;
  std::string owner_;
  ParamMap values_;
};

}  // namespace tributary
