// The RocksDB implementation behind state_store.h; included by this folder's sources only.
// open.cc opens and recovers, store_rows.cc has the small rows, store_versions.cc versions and partials, store_retention.cc what
// old versions give up, store_verify.cc the audit.
// Threads: safe. One commit or journal write per job at a time (others of the same job wait); no lock is held across I/O.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "aggregator/state/keys.h"
#include "aggregator/state/payload.h"
#include "aggregator/state/rocksdb_status.h"
#include "aggregator/state/rows.h"
#include "aggregator/state/state_store.h"
#include "common/unique_fd.h"

namespace tributary::aggregator {

enum Family : size_t { kMeta, kJobs, kVersions, kStrategyState, kClients, kRounds, kEvents, kUpdates, kBulk, kFamilies };
inline constexpr std::array<const char*, kFamilies> kFamilyNames = {"default", "jobs",   "versions", "strategy_state", "clients",
                                                                    "rounds",  "events", "updates",  "bulk"};

class RocksStateStore final : public StateStore {
 public:
  static absl::StatusOr<std::unique_ptr<RocksStateStore>> OpenStore(const Options& options);
  ~RocksStateStore() override;

  uint64_t epoch() const override { return epoch_; }
  absl::Status Writable() const override { return HasRoomFor(0); }

  absl::Status PutJob(const v1::JobRow& row) override;
  absl::StatusOr<v1::JobRow> GetJob(const std::string& job) const override;
  absl::StatusOr<std::vector<v1::JobRow>> ListJobs() const override;
  absl::Status PutArtifact(const std::string& job, std::string_view bytes) override;
  absl::StatusOr<std::string> GetArtifact(const std::string& job) const override;

  absl::Status CommitVersion(VersionCommit commit) override;
  absl::StatusOr<v1::VersionRow> GetVersion(const std::string& job, uint64_t version) const override;
  absl::StatusOr<uint64_t> LatestVersion(const std::string& job) const override;
  absl::StatusOr<uint64_t> FirstVersion(const std::string& job) const override;
  absl::StatusOr<std::vector<v1::VersionRow>> ListVersions(const std::string& job) const override;
  absl::Status ReadTensors(const std::string& job, uint64_t version, std::span<std::byte> out, bool verify) const override;
  absl::StatusOr<std::vector<NamedVector>> ReadStrategyState(const std::string& job, uint64_t version) const override;
  absl::StatusOr<std::vector<v1::ClientStateRow>> ListClientState(const std::string& job) const override;
  absl::StatusOr<std::vector<std::byte>> GetClientVector(const std::string& job, const std::string& client, uint64_t epoch) const override;
  absl::Status DropTensors(const std::string& job, uint64_t version, int64_t now_us) override;
  absl::Status ExpireUpdates(const std::string& job, uint64_t version, int64_t now_us) override;
  absl::StatusOr<v1::UpdateRow> GetUpdate(const std::string& job, const UpdateId& update) const override;
  absl::Status PutRecord(const std::string& job, const UpdateId& id, std::span<const std::byte> update) override;
  absl::StatusOr<std::vector<std::byte>> GetRecord(const std::string& job, const UpdateId& id) const override;
  absl::StatusOr<std::vector<UpdateId>> ListRecords(const std::string& job) const override;
  absl::Status DropRecord(const std::string& job, const UpdateId& id) override;

  absl::Status PutMetric(const std::string& job, const v1::Metric& metric) override;
  absl::StatusOr<std::vector<v1::Metric>> ListMetrics(const std::string& job) const override;
  absl::Status AppendEvent(const std::string& job, const v1::EventRow& event) override;
  absl::StatusOr<std::vector<v1::EventRow>> ListEvents(const std::string& job, size_t most) const override;

  absl::Status PutClient(const v1::ClientRow& row, bool synced) override;
  absl::StatusOr<v1::ClientRow> GetClient(const std::string& id) const override;
  absl::StatusOr<std::vector<v1::ClientRow>> ListClients() const override;

  absl::Status PutPartial(const std::string& job, v1::PartialRow row, std::span<const std::byte> sums) override;
  absl::StatusOr<StoredPartial> GetPartial(const std::string& job) const override;

  absl::StatusOr<std::vector<std::string>> Verify(const std::function<void(const std::string&)>& progress) const override;

 private:
  friend class Auditor;   // store_verify.cc

  // Holds a job's place while it commits or journals.
  class JobTurn {
   public:
    JobTurn(RocksStateStore& store, std::string job);
    JobTurn(const JobTurn&) = delete;
    JobTurn& operator=(const JobTurn&) = delete;
    ~JobTurn();

   private:
    RocksStateStore& store_;
    std::string job_;
  };

  explicit RocksStateStore(const Options& options) : options_(options) {}

  // Start-up and recovery, one path. open.cc.
  absl::Status LockDirectory();
  absl::Status OpenDatabase();
  absl::Status ReadMeta();
  absl::Status RaiseEpoch();
  absl::Status CheckJobRows();
  absl::Status SweepOrphans();

  // RESOURCE_EXHAUSTED below the watermark plus `bytes`; FAILED_PRECONDITION when read-only.
  absl::Status HasRoomFor(uint64_t bytes) const { return HasRoomFor(bytes, options_.min_free_bytes); }
  absl::Status HasRoomFor(uint64_t bytes, uint64_t keep_free) const;
  rocksdb::ColumnFamilyHandle* family(Family index) const { return handles_[index]; }
  absl::Status Write(rocksdb::WriteBatch& batch, bool synced, const std::string& what) {
    return Write(batch, synced, what, options_.min_free_bytes);
  }
  absl::Status Write(rocksdb::WriteBatch& batch, bool synced, const std::string& what, uint64_t keep_free);
  // "store '/dir': job 'a' version 3".
  std::string What(const std::string& object) const { return fmt::format("store '{}': {}", options_.dir, object); }

  absl::StatusOr<std::string> GetBytes(Family index, const std::string& key, const std::string& what) const;
  template <typename Row>
  absl::StatusOr<Row> GetRow(Family index, const std::string& key, const std::string& object) const {
    const std::string what = What(object);
    TRIB_ASSIGN_OR_RETURN(const std::string bytes, GetBytes(index, key, what));
    return DecodeRow<Row>(bytes, what);
  }
  // Calls visit(key, value) for every key with `prefix` in order until it returns an error or the keys end.
  absl::Status Scan(Family index, const std::string& prefix,
                    const std::function<absl::Status(std::string_view key, std::string_view value)>& visit) const;
  bool PayloadIsNamed(const keys::ParsedPayload& payload) const;

  uint64_t NextEvent(const std::string& job) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CheckNotPruned(const std::string& job, const v1::VersionRow& row) const;
  absl::StatusOr<v1::VersionRow> LatestRow(const std::string& job) const;
  absl::Status CheckFollows(const v1::VersionRow& row, const std::string& job, std::string* parent_sha256) const;

  const Options options_;
  UniqueFd directory_lock_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;   // owned by db_, destroyed in the destructor
  std::unique_ptr<PayloadStore> payloads_;
  uint64_t epoch_ = 0;
  int64_t created_us_ = 0;
  std::atomic<uint64_t> next_generation_{1};

  absl::Mutex mutex_;
  std::set<std::string> busy_jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> next_event_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tributary::aggregator
