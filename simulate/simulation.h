// A whole job in one process on a virtual clock: the aggregator's own round engine, reducers, server steps and strategies, and learners
// as the clients have them; what is simulated is who takes part and how long a task takes (`simulate:` of the job).
//
//   events (time, kind, order)            engine                       executor
//   update due, tick, trace ──> OnEvent(event, now) ──> actions ──> issue a task, fold, server step, evaluate, wake
//
// Time is whole nanoseconds from 0; training, folding and commits take none. Arrivals of a moment come before its ticks. Equal specs,
// seeds and data give equal models, versions and records, whatever the number of learners.
// Synchronous strategies: at the start of each round those who take part are told to the engine, which draws min(cohort.size, available)
// of them; a round of nobody counts and leaves the model alone. With cohort.population the engine draws among everybody instead.
// Asynchronous strategies: everybody takes part, all start at time 0.
// Privacy noise, rounding and draws follow from the seed, so a simulation's noise protects nobody: its spend says insecure_seed.
// Source: the framework of Fraboni et al., JMLR 2023; algorithms.md §4.
// Threads: thread-compatible. Errors: INVALID_ARGUMENT (what cannot be simulated, named), the learner's, DATA_LOSS (a model that is not
// finite); Run() reports a job that fails in its result.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "aggregator/core/contribution.h"
#include "aggregator/state/state_store.h"
#include "client/core/dataset.h"
#include "client/core/learner.h"
#include "common/job_spec.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace tributary::simulate {

struct Progress {
  uint64_t version = 0;
  double virtual_s = 0;
  uint64_t updates = 0;       // folded so far
  double loss = 0, accuracy = 0;  // of the latest evaluation; NaN: none
};

struct SimulationOptions {
  JobSpec spec;
  std::vector<std::string> clients;                   // ids in shard order
  FlatModel initial;
  std::vector<client::Learner*> learners;             // at least one; each is used by one thread
  std::function<absl::StatusOr<std::shared_ptr<const client::Dataset>>(uint32_t client)> data;
  std::shared_ptr<const client::Dataset> evaluation;  // null: nothing is evaluated
  std::string artifact;                               // content of the TorchScript file or of the adapters' base; empty: none
  aggregator::StateStore* store = nullptr;            // null: nothing is kept
  bool keep_history = false;                          // contributors of every version in the result
  bool keep_models = false;                           // the model of every version in the result
  std::function<bool(const Progress&)> progress;      // after each version; false: cancelled
  std::function<bool()> interrupted;                  // asked from the learners' threads while they work; true: cancelled
};

struct SimulatedVersion {
  uint64_t version = 0;
  double virtual_s = 0;
  std::string trigger;
  std::vector<aggregator::RoundContributor> contributors;
  std::optional<v1::PrivacySpend> privacy;   // up to it
};

enum class SimulationState { kDone, kFailed, kCancelled };

struct SimulationResult {
  std::string id;             // "<name>-<6 hex>"
  SimulationState state = SimulationState::kDone;
  std::string reason;
  uint64_t version = 0;
  double virtual_s = 0;
  FlatModel model;
  std::string model_sha256;
  JobSpec spec;               // as it ran: the noise that an epsilon asked for, rates that the simulate: block implies
  std::optional<v1::PrivacySpend> privacy;
  std::vector<v1::Metric> metrics;
  std::vector<SimulatedVersion> history;
  std::vector<std::shared_ptr<const client::ClientState>> client_states;  // of each client, as of its last counted update
  std::vector<double> models;     // trainable elements of versions 0, 1, …, one after the other
  std::vector<double> model_times_s;
  uint64_t updates_committed = 0;
  std::map<std::string, uint64_t> updates_rejected;  // by reason
  uint64_t bytes_up = 0, bytes_down = 0;
  uint64_t clients_trained = 0;   // tasks trained
  uint64_t engine_events = 0;
};

absl::StatusOr<SimulationResult> RunSimulation(const SimulationOptions& options);

}  // namespace tributary::simulate
