// Learners whose updates are known in advance, for tests and benchmarks; no torch.
//   onehot  1.0 at one coordinate of the first half of the trainable elements, small integers in the second half derived from
//           (client, version); weight 1. The final model is then a count vector: reliability.md §4. Client i of K owns coordinates
//           [i·s, (i+1)·s) with s = ⌊P/2/K⌋; the coordinate is the base version (default) or a counter kept on disk, raised before
//           its value is used, so that no two updates share one.
//   offset  a constant everywhere: base + version · 0.001
//   file    tensors of DIR/<client>.v<version>.safetensors, else DIR/<client>.safetensors; weight from --weight, else the file's
//           metadata key "weight", else 1
// Evaluation answers with loss = 1 / (1 + version) and accuracy = 0.5. Data are not needed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "client/core/learner.h"
#include "common/status.h"

namespace tributary::client {

struct ScriptedOptions {
  std::string kind = "onehot";
  std::filesystem::path state;                  // counters lie beside the identities' outboxes
  std::map<std::string, int64_t> index_of;      // client id -> index in [0, clients)
  int64_t clients = 1;
  bool by_counter = false;
  double offset = 0;                            // offset: of every client; 0: client index + 1
  std::filesystem::path updates;                // file
  double weight = 0;                            // 0: the kind's own
  uint64_t examples = 100;
  int64_t train_ms = 0;
};

class ScriptedLearner final : public Learner {
 public:
  explicit ScriptedLearner(ScriptedOptions options) : options_(std::move(options)) {}
  std::string device() const override { return "cpu (scripted)"; }
  absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset* data) override;
  absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest& request, const Dataset* data) override;

 private:
  absl::Status FillOneHot(const TrainRequest& request, TrainResult* result) const;
  absl::Status FillOffset(const TrainRequest& request, TrainResult* result) const;
  absl::Status FillFromFile(const TrainRequest& request, TrainResult* result) const;
  absl::StatusOr<uint64_t> NextCount(const std::string& client) const;
  int64_t IndexOf(const std::string& client) const;
  const ScriptedOptions options_;
};

// The integer, -4 to 4, that client's update for a version holds at element i of the second half.
int SmallInteger(const std::string& client, uint64_t version, uint64_t element);

}  // namespace tributary::client
