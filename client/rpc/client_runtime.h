// A client daemon without its main: hosts N identities on one Connection, each with its own session, outbox and secret under
// STATE/<client>/, and shares between them the Connection, downloads, the learners and the data.
//
//   gRPC threads ──messages──▶ ┌────────────┐ ──fetch──▶ 2 threads ──▶ train: train_threads ──▶ store, upload: upload_threads
//   pools ─────────results───▶ │ loop thread │ ◀──────────────────────── events ────────────────────────────────────┘
//   time ──────────ticks─────▶ └────────────┘   all sessions live here; nothing on it blocks but small file operations
//
// So uploads and downloads of some identities overlap with the training of others. At most one task per identity is under way.
// SIGTERM is the caller's: request_stop() on the token makes RunClient abandon training, keep the outboxes, detach and return.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "client/core/dataset.h"
#include "client/core/learner.h"
#include "client/core/session.h"
#include "client/data/outbox.h"
#include "common/job_spec.h"
#include "common/status.h"

namespace tributary::client {

// What happened to an update, for ledgers and progress. `header` is whole also when the update is gone by now.
struct UpdateEvent {
  enum class Kind { kStored, kAnswered, kSettled };  // in the outbox; the upload was answered; final, about to be dropped
  Kind kind = Kind::kStored;
  std::string client;
  OutboxHeader header;
  Verdict verdict;
};

struct ClientOptions {
  std::string server;                 // HOST:PORT
  std::string name;                   // identity NAME if there is one, else NAME-0 … NAME-(N-1)
  int identities = 1;
  int64_t shards = 0;                 // K of "shard k of K"; 0: as many as identities
  int64_t first_shard = 0;            // identity i trains on shard first_shard + i
  std::filesystem::path state;
  bool trains = true;
  bool evaluates = false;
  bool allow_torchscript = false;
  std::string data_path;              // replaces the job's data.path; empty: the job's own
  std::string software = "tributary-client 0.1.0";
  int train_threads = 1;
  int upload_threads = 0;             // 0: one per identity, at most 8
  uint64_t outbox_limit_bytes = uint64_t{4} << 30;  // per identity
  uint64_t early_upload_bytes = uint64_t{4} << 20;  // an update of so many bytes leaves while it is being made and stored, where it may
  absl::Duration drain = absl::Seconds(3);          // how long to wait for a clean detach at stop
  // Called on the loop thread or a pool thread, one call at a time per identity; must not block for long.
  std::function<void(const UpdateEvent&)> on_update;
};

// Makes one learner per train thread. Called before anything else is started.
using LearnerFactory = std::function<absl::StatusOr<std::unique_ptr<Learner>>()>;

struct DataRequest {
  const JobSpec* spec = nullptr;
  std::string client;
  int64_t shard = 0;
  int64_t shards = 1;
  bool evaluation = false;            // the held-out set, not a shard
};
// The data of one identity; null when the learner brings its own. Called on train threads, from several at once; should cache.
using DatasetProvider = std::function<absl::StatusOr<std::shared_ptr<const Dataset>>(const DataRequest&)>;

// Runs until `stop` is requested. OK: stopped in good order. Errors are of the start only (options, state folders, learner): a
// server that cannot be reached is waited for.
absl::Status RunClient(const ClientOptions& options, const LearnerFactory& make_learner, const DatasetProvider& provide_data,
                       std::stop_token stop);

// The ids that RunClient will use.
std::vector<std::string> IdentityNames(const std::string& name, int identities);

}  // namespace tributary::client
