// The tasks of a simulation: made when the engine issues them, trained when the first update of them is due, those that wait by then
// side by side on as many threads as there are learners, or as one cohort by a learner that takes cohorts; evaluations likewise, a piece of the
// examples each. Results do not depend on the number of learners.
// Threads: thread-compatible; learners are used by one thread each. Errors: the learner's, naming client and version.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "aggregator/core/kernels.h"
#include "client/core/learner.h"
#include "common/large_bytes.h"
#include "common/status.h"

namespace tributary::simulate {

// One committed model; shared by the tasks that start from it.
using ModelRef = std::shared_ptr<const std::vector<std::byte>>;

struct SimulatedTask {
  uint64_t id = 0;
  uint32_t client = 0;
  uint64_t version = 0;
  uint64_t repeat = 0;        // how many tasks of this client and version there were before
  ModelRef model;
  std::map<std::string, ModelRef> vectors;         // that go down with the version, each over the trainable elements (but one, see below)
  std::shared_ptr<const client::ClientState> state;  // as of the client's last counted update
  double clip = 0;            // C of the version, of jobs with privacy
  GlobalMoe moe{};            // of all clients' experts, of the newest version
  uint64_t noise_seed = 0;    // of the client's members, of a strategy with a population
  std::optional<client::TrainResult> result;       // its update as it travels
  aggregator::ScanResult scan;                     // of that update, unless it is on a device
};

struct TrainingOptions {
  const JobSpec* spec = nullptr;
  const TensorLayout* layout = nullptr;
  const TensorLayout* update_layout = nullptr;
  UpdateEncoding encoding{};
  ModelRef initial;                                   // version 0
  const std::vector<std::string>* clients = nullptr;  // ids in shard order
  std::vector<client::Learner*> learners;             // at least one
  std::function<absl::StatusOr<std::shared_ptr<const client::Dataset>>(uint32_t client)> data;  // called from one thread at a time
  std::string artifact_path;
  std::function<bool()> interrupted;                  // asked from the learners' threads; true: what runs ends with CANCELLED
  std::string in_place_of_model;                      // the one of the vectors that is in the model's flat form; "": none
  bool updates_stay_on_device = false;                // whose learner can leave them there, where nothing is done to them on their way
};

class Training {
 public:
  explicit Training(TrainingOptions options) : options_(std::move(options)) {}
  void Issue(SimulatedTask task);
  bool Has(uint64_t task) const { return tasks_.contains(task); }
  void Cancel(uint64_t task);
  // The task, trained, which leaves this object.
  absl::StatusOr<SimulatedTask> Finish(uint64_t task);
  // Loss and accuracy of a model on `data`.
  absl::StatusOr<client::EvaluateResult> Evaluate(uint64_t version, std::span<const std::byte> model, const client::Dataset& data);
  uint64_t trained() const { return trained_; }

 private:
  absl::Status TrainWaiting();
  absl::Status TrainCohorts(std::span<SimulatedTask* const> tasks, std::span<const std::shared_ptr<const client::Dataset>> data) const;
  // call(i, learner) for each i in [0, count), each learner on a thread of its own; the first error in order of i.
  absl::Status SideBySide(size_t count, const std::function<absl::Status(size_t, client::Learner*)>& call) const;
  std::function<bool(float)> Progress() const;
  client::TrainRequest RequestOf(const SimulatedTask& task) const;
  // Takes what a learner made of a task.
  absl::Status Take(SimulatedTask* task, absl::StatusOr<client::TrainResult> result) const;
  // What leaves the client of what it has trained: clipped, noised, encoded.
  absl::Status Encode(const SimulatedTask& task, client::TrainResult* result) const;

  const TrainingOptions options_;
  std::unordered_map<uint64_t, SimulatedTask> tasks_;
  std::vector<uint64_t> waiting_;  // issued, not trained, in order; may hold cancelled ones
  uint64_t trained_ = 0;
};

}  // namespace tributary::simulate
