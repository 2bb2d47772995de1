// The parameters of a zoo model as text, merged with the defaults of its line in models.def and read with checks.
// Errors: INVALID_ARGUMENT naming model, parameter, expected and got; unknown keys with the nearest known one.
// Threads: immutable once made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

class ModelParams {
 public:
  // `defaults` is "key=value,key=value": every parameter the model has.
  static absl::StatusOr<ModelParams> Create(std::string model, std::string_view defaults, const ParamMap& given);

  // An integer in [1, 2^24].
  absl::StatusOr<int64_t> Count(const std::string& key) const;
  // Counts joined by x, "1x28x28"; `extents` of them, or any number >= 1 if 0. Product at most 2^32.
  absl::StatusOr<std::vector<int64_t>> Counts(const std::string& key, size_t extents) const;
  // One of `choices`.
  absl::StatusOr<std::string> Choice(const std::string& key, const std::vector<std::string>& choices) const;

 private:
  const std::string& Text(const std::string& key) const;
  std::string model_;
  ParamMap values_;
};

}  // namespace tributary::client
