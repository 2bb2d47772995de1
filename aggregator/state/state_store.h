// The state store: jobs, model versions, strategy state, contributors, metrics, events, journalled partials, in RocksDB.
//
// Rows are v1 protobuf values (proto/tributary/v1/store.proto) under big-endian keys; see KEYS.md for the table. Opening an unknown
// format_version is refused. A version is one atomic commit: its tensor shards go first in unsynced batches, then manifest,
// strategy state, dedupe rows, closed partial, job row and event in one synced batch. All families share one WAL and recovery keeps
// a prefix of it, so a manifest implies its shards; shards without a manifest are swept at open.
// The store is locked by its directory: a second writer gets UNAVAILABLE. kReadOnly opens beside nothing (the daemon must be down).
//
// Errors: NOT_FOUND, DATA_LOSS (checksum or decode), RESOURCE_EXHAUSTED (free space below the watermark), UNAVAILABLE (locked).
// Threads: safe from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/status.h"
#include "common/tensor_layout.h"
#include "tributary/v1/store.pb.h"

namespace tributary::aggregator {

struct NamedVector {
  std::string name;                 // "momentum"
  std::vector<double> values;
};

struct VersionCommit {
  v1::JobRow job;                   // state after this commit
  v1::VersionRow version;           // shards/shard_bytes are filled in by the store
  std::span<const std::byte> tensors;  // flat form; none of a version that is adopted without them (info.pruned_us, info.sha256 set)
  // Their SHA-256 in hex, if it is being computed while they are written: asked for after that, instead of version.info.sha256.
  std::function<std::string()> sha256;
  std::vector<NamedVector> strategy_state;
  std::vector<std::pair<UpdateId, v1::UpdateRow>> updates;   // dedupe rows
  // Rows that outlive versions: they replace what is there of the same client.
  std::vector<v1::ClientStateRow> client_state;
  std::vector<std::pair<std::string, std::span<const std::byte>>> client_vectors;
  std::vector<v1::EventRow> events;
};

class StateStore {
 public:
  enum class Mode { kReadWrite, kReadOnly };
  struct Options {
    std::string dir;
    Mode mode = Mode::kReadWrite;
    uint64_t min_free_bytes = 256ull << 20;   // the watermark of Writable()
    bool create = true;
    bool synced = true;   // false: what is written reaches the disk at the latest when the store is closed (a simulation can be run again)
  };
  static absl::StatusOr<std::unique_ptr<StateStore>> Open(const Options& options);
  virtual ~StateStore() = default;

  // Raised by one at each read-write open; high half of task ids.
  virtual uint64_t epoch() const = 0;
  // RESOURCE_EXHAUSTED below the free-space watermark.
  virtual absl::Status Writable() const = 0;

  virtual absl::Status PutJob(const v1::JobRow& row) = 0;             // synced
  virtual absl::StatusOr<v1::JobRow> GetJob(const std::string& job) const = 0;
  virtual absl::StatusOr<std::vector<v1::JobRow>> ListJobs() const = 0;   // by submission time
  virtual absl::Status PutArtifact(const std::string& job, std::string_view bytes) = 0;
  virtual absl::StatusOr<std::string> GetArtifact(const std::string& job) const = 0;

  virtual absl::Status CommitVersion(VersionCommit commit) = 0;       // synced, atomic
  virtual absl::StatusOr<v1::VersionRow> GetVersion(const std::string& job, uint64_t version) const = 0;
  virtual absl::StatusOr<uint64_t> LatestVersion(const std::string& job) const = 0;   // NOT_FOUND: none
  virtual absl::StatusOr<uint64_t> FirstVersion(const std::string& job) const = 0;    // NOT_FOUND: none
  virtual absl::StatusOr<std::vector<v1::VersionRow>> ListVersions(const std::string& job) const = 0;
  // `out.size()` must be the version's bytes. Verifies SHA-256 when `verify`.
  virtual absl::Status ReadTensors(const std::string& job, uint64_t version, std::span<std::byte> out, bool verify) const = 0;
  virtual absl::StatusOr<std::vector<NamedVector>> ReadStrategyState(const std::string& job, uint64_t version) const = 0;
  // As of the latest version.
  virtual absl::StatusOr<std::vector<v1::ClientStateRow>> ListClientState(const std::string& job) const = 0;
  // NOT_FOUND: none, or none that a version after `epoch` has counted.
  virtual absl::StatusOr<std::vector<std::byte>> GetClientVector(const std::string& job, const std::string& client, uint64_t epoch) const = 0;
  // NOT_FOUND from the first two for a version whose tensors were dropped; the message names those that are kept.

  // Retention (retention.h says when). Both leave the manifest and are idempotent; synced. `now_us`: wall clock, for the record.
  // FAILED_PRECONDITION for the latest version.
  virtual absl::Status DropTensors(const std::string& job, uint64_t version, int64_t now_us) = 0;
  // The dedupe rows of a version's contributors.
  virtual absl::Status ExpireUpdates(const std::string& job, uint64_t version, int64_t now_us) = 0;
  // Updates kept for replay, as they came. PutRecord replaces one that was sent again; it is on the disk when the
  // version that counts it is. NOT_FOUND: not kept. DATA_LOSS: other bytes than were written.
  virtual absl::Status PutRecord(const std::string& job, const UpdateId& id, std::span<const std::byte> update) = 0;
  virtual absl::StatusOr<std::vector<std::byte>> GetRecord(const std::string& job, const UpdateId& id) const = 0;
  virtual absl::StatusOr<std::vector<UpdateId>> ListRecords(const std::string& job) const = 0;
  virtual absl::Status DropRecord(const std::string& job, const UpdateId& id) = 0;
  // NOT_FOUND: never counted.
  virtual absl::StatusOr<v1::UpdateRow> GetUpdate(const std::string& job, const UpdateId& update) const = 0;

  virtual absl::Status PutMetric(const std::string& job, const v1::Metric& metric) = 0;   // unsynced: a metric may be evaluated again
  virtual absl::StatusOr<std::vector<v1::Metric>> ListMetrics(const std::string& job) const = 0;
  virtual absl::Status AppendEvent(const std::string& job, const v1::EventRow& event) = 0;  // unsynced
  virtual absl::StatusOr<std::vector<v1::EventRow>> ListEvents(const std::string& job, size_t most) const = 0;

  virtual absl::Status PutClient(const v1::ClientRow& row, bool synced) = 0;
  virtual absl::StatusOr<v1::ClientRow> GetClient(const std::string& id) const = 0;
  virtual absl::StatusOr<std::vector<v1::ClientRow>> ListClients() const = 0;

  // The journalled partial of the open version (durability: durable). Replaces the former one in one synced batch; CommitVersion
  // deletes it.
  virtual absl::Status PutPartial(const std::string& job, v1::PartialRow row, std::span<const std::byte> sums) = 0;
  struct StoredPartial { v1::PartialRow row; std::vector<std::byte> sums; };
  virtual absl::StatusOr<StoredPartial> GetPartial(const std::string& job) const = 0;   // NOT_FOUND: none

  // Every version's hash, shard presence and chain; dedupe rows against contributors. One line per finding; empty: sound.
  virtual absl::StatusOr<std::vector<std::string>> Verify(const std::function<void(const std::string&)>& progress) const = 0;
};

}  // namespace tributary::aggregator
