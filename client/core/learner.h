// What trains: the one interface between a client's session and its numerics. Implementations: client/torch (LibTorch), and
// scripted learners in tests/support. No torch type crosses it.
// Threads: one call at a time per Learner; `progress` is called from the learner's thread. Errors: INVALID_ARGUMENT (a job this
// learner cannot do: unknown model, wrong shapes), RESOURCE_EXHAUSTED (device memory), CANCELLED (progress returned false).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/core/dataset.h"
#include "client/core/local_rule.h"
#include "common/job_spec.h"
#include "common/large_bytes.h"
#include "common/moe_stats.h"
#include "common/status.h"
#include "common/tensor_layout.h"

namespace tributary::client {

struct TrainRequest {
  const JobSpec* spec = nullptr;
  const TensorLayout* layout = nullptr;
  std::string_view artifact_path;              // TorchScript file; empty if none
  std::span<const std::byte> model;            // flat form, layout->total_bytes(); trainable: of a strategy that sends another vector in its place, that
  // Of a strategy that sends vectors down with a version: each over the trainable elements, raw, of the model's type ("g", "c", "s").
  std::map<std::string, std::span<const std::byte>> vectors{};
  const TensorLayout* update_layout = nullptr; // of the update to make: `layout`, one with further groups (WithGroups), or the strategy's own
  std::span<const std::byte> initial;          // version `state_epoch` in the same form; empty: not known
  uint64_t state_epoch = 0;                    // the version from which all clients' states began
  const ClientState* state = nullptr;          // of this client in this job; null: none is kept (strategies that need one refuse)
  uint64_t version = 0;
  uint64_t seed = 0;                           // of minibatch order: from job seed, client id and version
  std::string client;                          // id of the identity that trains
  int64_t shard = 0;                           // which of the job's clients it is: local.steps and local.lr may differ by client
  bool may_stay_on_device = false;             // who asks can take the update from the device: TrainResult::on_device
  const GlobalMoe* moe = nullptr;              // of all clients' experts, as of the newest version; null: nothing is known
  uint64_t noise_seed = 0;                     // of this client's members, of a strategy whose clients try a population (common/eggroll_spec.h)
  double gradient_noise = 0;                   // s: every local gradient gets + N(0, s²I), drawn from `seed` (simulations)
  std::function<bool(float done)> progress;    // done in [0, 1]; false: stop
};

class DeviceUpdate;  // device_update.h

struct TrainResult {
  LargeBytes update;                           // flat form of update_layout: Δ = new − old for trainable, values for buffers and counters; or fitness
  // In its place, where the request allows it: shared, as results are copied on their way to who stores them.
  std::shared_ptr<DeviceUpdate> on_device{};
  double weight = 0;                           // examples, usually
  uint64_t examples = 0;
  std::map<std::string, double> metrics;       // train_loss, train_s, …
  std::optional<ClientState> state{};          // that holds once the update is counted
  std::map<std::string, double> scalars{};     // what the job's strategy asks for by name ("step_norm"), and nothing else; finite
  MoeStats moe{};                              // of a mixture's layers; empty: the model has none
};

struct EvaluateResult {
  double loss = 0;
  double accuracy = 0;                         // NaN where the task has none
  uint64_t examples = 0;
};

// One of several clients that train side by side.
struct CohortMember {
  TrainRequest request;
  const Dataset* data = nullptr;
};

// How full and how busy the device is that a learner trains on, whoever uses it.
struct DeviceUsage {
  std::string id{};                            // the same for all that share it ("GPU-5c1a…")
  uint64_t memory_used_bytes = 0;
  uint64_t memory_total_bytes = 0;
  double utilisation = 0;                      // share of the last moments in which it worked, [0, 1]
};

class Learner {
 public:
  virtual ~Learner() = default;
  virtual std::string device() const = 0;      // "cpu", "cuda:0 NVIDIA H200"
  // From any thread, while others train. Nothing: the device does not tell, or is the CPU.
  virtual std::optional<DeviceUsage> usage() const { return std::nullopt; }
  // `data`: this identity's training shard (may be null: the learner brings its own).
  virtual absl::StatusOr<TrainResult> Train(const TrainRequest& request, const Dataset* data) = 0;
  virtual absl::StatusOr<EvaluateResult> Evaluate(const TrainRequest& request, const Dataset* data) = 0;
  // How many clients TrainCohort is best given; 1: side by side is no faster than one after the other.
  virtual size_t cohort_size() const { return 1; }
  // Train for each member, all of one job, as if alone; the results in their order. What fails for one does not touch the others.
  virtual std::vector<absl::StatusOr<TrainResult>> TrainCohort(std::span<const CohortMember> members) {
    std::vector<absl::StatusOr<TrainResult>> results;
    for (const CohortMember& member : members) results.push_back(Train(member.request, member.data));
    return results;
  }
};

}  // namespace tributary::client
