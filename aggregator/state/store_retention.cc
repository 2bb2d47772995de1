// Taking leave of the past: tensors of old versions, dedupe rows that can stop nothing any more. Rows first, in one synced batch that
// says so in the manifest; a file of the bulk family after it. After a crash in between the file is an orphan, like any other.
// Both go on below the watermark, down to half of it: they make room.
#include "aggregator/state/retention.h"
#include "aggregator/state/rocks_store.h"
#include "common/log.h"

namespace tributary::aggregator {

absl::Status RocksStateStore::DropTensors(const std::string& job, uint64_t version, int64_t now_us) {
  const std::string what = What(fmt::format("job '{}' version {}", job, version));
  const JobTurn turn(*this, job);
  TRIB_ASSIGN_OR_RETURN(v1::VersionRow row, GetVersion(job, version));
  if (row.info().pruned_us() != 0) return absl::OkStatus();
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow latest, LatestRow(job));
  if (version == latest.info().version()) return FailedPrecondition("{}: is the latest, which the job goes on from", what);
  const std::string payload = keys::Payload(keys::Owner::kVersion, job, version);
  const bool bulk = row.bulk();
  row.mutable_info()->set_pruned_us(now_us);
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kVersions), keys::Version(job, version), EncodeRow(std::move(row))), what));
  if (!bulk) TRIB_RETURN_IF_ERROR(FromRocksDb(batch.DeleteRange(family(kVersions), payload, keys::PrefixEnd(payload)), what));
  TRIB_RETURN_IF_ERROR(Write(batch, /*synced=*/true, what, options_.min_free_bytes / 2));
  // Pruned. What follows only frees space; a failure leaves an orphan for the next open.
  if (bulk) TRIB_LOG_IF_ERROR(payloads_->DropBulk(payload, what));
  return absl::OkStatus();
}

absl::Status RocksStateStore::ExpireUpdates(const std::string& job, uint64_t version, int64_t now_us) {
  const std::string what = What(fmt::format("dedupe rows of job '{}' version {}", job, version));
  const JobTurn turn(*this, job);
  TRIB_ASSIGN_OR_RETURN(v1::VersionRow row, GetVersion(job, version));
  if (row.dedupe_expired_us() != 0) return absl::OkStatus();
  rocksdb::WriteBatch batch;
  for (const v1::Contributor& contributor : row.info().contributors()) {
    const auto id = UpdateIdFromBytes(contributor.update_id());
    if (!id.ok()) return DataLoss("{}: contributor '{}': {}", what, contributor.client(), MessageOf(id.status()));
    TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Delete(family(kUpdates), keys::Update(job, *id)), what));
  }
  row.set_dedupe_expired_us(now_us);
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kVersions), keys::Version(job, version), EncodeRow(std::move(row))), what));
  return Write(batch, /*synced=*/true, what, options_.min_free_bytes / 2);
}

absl::Status RocksStateStore::CheckNotPruned(const std::string& job, const v1::VersionRow& row) const {
  if (row.info().pruned_us() == 0) return absl::OkStatus();
  TRIB_ASSIGN_OR_RETURN(const std::vector<v1::VersionRow> rows, ListVersions(job));
  return NotFound("{}: its tensors were pruned at {}; versions whose tensors are kept: {}",
                  What(fmt::format("job '{}' version {}", job, row.info().version())),
                  absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixMicros(row.info().pruned_us()), absl::UTCTimeZone()), KeptText(rows));
}

}  // namespace tributary::aggregator
