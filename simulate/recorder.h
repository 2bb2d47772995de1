// Writes a simulated job into a state store, as the daemon would: job row, versions with contributors and strategy state, clients' rows,
// metrics. Times are virtual, counted from the moment the simulation began.
// Borrows the store. Threads: thread-compatible. Errors: the store's; ALREADY_EXISTS for a job id that is taken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregator/core/round.h"
#include "aggregator/core/server_step.h"
#include "aggregator/state/state_store.h"
#include "common/job_spec.h"
#include "common/large_bytes.h"
#include "common/tensor_layout.h"

namespace tributary::simulate {

class Recorder {
 public:
  static absl::StatusOr<Recorder> Begin(aggregator::StateStore* store, const std::string& id, const JobSpec& spec, const TensorLayout& layout,
                                        const std::string& artifact, std::span<const std::byte> model, const std::string& sha256,
                                        const std::optional<v1::PrivacySpend>& privacy);

  struct Version {
    const aggregator::Commit* commit = nullptr;
    std::span<const std::byte> model;
    std::string sha256;
    const aggregator::StrategyState* state = nullptr;
    std::vector<std::pair<std::string, std::span<const std::byte>>> client_vectors;
    const std::map<UpdateId, std::shared_ptr<const LargeBytes>>* updates = nullptr;  // of the contributors, to be kept for replay; null: not kept
    std::optional<v1::PrivacySpend> privacy{};                 // spent up to this version
    std::map<std::string, double> measured{};                  // by its aggregation
    const GlobalMoe* moe = nullptr;                            // of all clients' experts
    int64_t now_ns = 0;
  };
  absl::Status Commit(const Version& version);
  absl::Status Metric(const v1::Metric& metric) { return store_->PutMetric(row_.id(), metric); }
  struct Totals {
    v1::JobState state = v1::JOB_STATE_DONE;
    std::string reason;
    int64_t now_ns = 0;
    uint64_t bytes_up = 0, bytes_down = 0;
    std::map<std::string, uint64_t> rejected;
  };
  absl::Status End(const Totals& totals);

 private:
  explicit Recorder(aggregator::StateStore* store) : store_(store) {}
  int64_t MicrosAt(int64_t now_ns) const { return row_.submitted_us() + now_ns / 1000; }
  aggregator::StateStore* store_;
  v1::JobRow row_;
  std::string parent_sha256_;
};

}  // namespace tributary::simulate
