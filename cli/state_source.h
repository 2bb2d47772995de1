// Where `tributary state` reads from: a running aggregator, or a store on disk (read-only) when none runs. Both answer alike.
//
// A job may be named by its id, by an unambiguous beginning of it, or by its name; "" means the only one there is.
// Errors: NOT_FOUND, INVALID_ARGUMENT (ambiguous), UNAVAILABLE, DATA_LOSS. Thread-compatible.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/job_spec.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "tributary/v1/admin.pb.h"

namespace tributary::cli {

class StateSource {
 public:
  virtual ~StateSource() = default;

  // The full id.
  virtual absl::StatusOr<std::string> Resolve(const std::string& job) = 0;
  // Without layouts, in order.
  virtual absl::StatusOr<std::vector<v1::VersionInfo>> List(const std::string& id) = 0;
  // With its layout. No version: the latest.
  virtual absl::StatusOr<v1::VersionInfo> Get(const std::string& id, std::optional<uint64_t> version) = 0;
  // The job, as it was submitted.
  virtual absl::StatusOr<JobSpec> Spec(const std::string& id) = 0;
  // A safetensors file: the model, or the strategy state as F64 tensors.
  virtual absl::StatusOr<std::string> Export(const std::string& id, uint64_t version, bool strategy_state) = 0;
  // One line per finding; "" checks all jobs. `progress` gets one line per thing looked at.
  virtual absl::StatusOr<std::vector<std::string>> Verify(const std::string& id, const std::function<void(const std::string&)>& progress) = 0;
};

absl::StatusOr<std::unique_ptr<StateSource>> OpenStoreSource(const std::string& dir);
absl::StatusOr<std::unique_ptr<StateSource>> ConnectSource(const std::string& server);

}  // namespace tributary::cli
