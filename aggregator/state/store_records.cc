// Updates kept for replay (job key record: true): a row and a payload for each.
#include "aggregator/state/rocks_store.h"
#include "common/digest.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

std::string NameOf(const std::string& job, const UpdateId& id) { return fmt::format("recorded update {} of job '{}'", ToHex(id), job); }

// Keys of payloads have room for a number. Ids are the clients' to choose: a hash that nobody can aim.
uint64_t NumberOf(const UpdateId& id) {
  const std::string bytes = ToBytes(id);
  return UpdateIdFromHex(Sha256Hex(std::as_bytes(std::span(bytes))).substr(0, 32)).value_or(UpdateId{}).hi;
}

}  // namespace

absl::Status RocksStateStore::PutRecord(const std::string& job, const UpdateId& id, std::span<const std::byte> update) {
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(job));
  const std::string what = What(NameOf(job, id));
  TRIB_RETURN_IF_ERROR(HasRoomFor(update.size()));
  v1::RecordRow row;
  row.set_bytes(update.size());
  row.set_shard_bytes(kShardBytes);
  row.set_bulk(update.size() > kInlineBytes);
  row.set_xxh3_128(Xxh3Digest(update));
  row.set_update_id(ToBytes(id));
  const std::string payload = keys::Payload(keys::Owner::kRecord, job, NumberOf(id));
  rocksdb::WriteBatch batch;
  if (row.bulk()) {
    TRIB_RETURN_IF_ERROR(payloads_->DropBulk(payload, what));   // of an attempt that failed, or of the same update sent again
    TRIB_RETURN_IF_ERROR(payloads_->WriteBulk(payload, {update}, what));
  } else {
    TRIB_RETURN_IF_ERROR(PayloadStore::AppendInline(batch, family(kRounds), payload, {update}, what));
  }
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kRounds), keys::Record(job, NumberOf(id)), EncodeRow(row)), what));
  // The version that counts it is synced later, and brings this to the disk with it.
  return Write(batch, /*synced=*/false, what);
}

absl::StatusOr<std::vector<std::byte>> RocksStateStore::GetRecord(const std::string& job, const UpdateId& id) const {
  const std::string object = NameOf(job, id);
  TRIB_ASSIGN_OR_RETURN(const auto row, GetRow<v1::RecordRow>(kRounds, keys::Record(job, NumberOf(id)), object));
  std::vector<std::byte> update;
  update.reserve(row.bytes());
  TRIB_RETURN_IF_ERROR(payloads_->ReadPiece(family(kRounds), row.bulk(), keys::Payload(keys::Owner::kRecord, job, NumberOf(id)), 0, row.bytes(), row.shard_bytes(),
                                            What(object), [&](std::span<const std::byte> shard) {
                                              update.insert(update.end(), shard.begin(), shard.end());
                                              return absl::OkStatus();
                                            }));
  if (row.update_id() != ToBytes(id)) return NotFound("{}: is not kept", What(object));
  if (Xxh3Digest(update) != row.xxh3_128()) return DataLoss("{}: its bytes are not those that were written", What(object));
  return update;
}

absl::StatusOr<std::vector<UpdateId>> RocksStateStore::ListRecords(const std::string& job) const {
  std::vector<UpdateId> ids;
  const std::string what = What(fmt::format("recorded updates of job '{}'", job));
  TRIB_RETURN_IF_ERROR(Scan(kRounds, keys::JobPrefix(keys::kRecord, job), [&](std::string_view, std::string_view value) -> absl::Status {
    TRIB_ASSIGN_OR_RETURN(const v1::RecordRow row, DecodeRow<v1::RecordRow>(value, what));
    TRIB_ASSIGN_OR_RETURN(ids.emplace_back(), UpdateIdFromBytes(row.update_id()));
    return absl::OkStatus();
  }));
  return ids;
}

absl::Status RocksStateStore::DropRecord(const std::string& job, const UpdateId& id) {
  const std::string what = What(NameOf(job, id));
  const absl::StatusOr<v1::RecordRow> row = GetRow<v1::RecordRow>(kRounds, keys::Record(job, NumberOf(id)), NameOf(job, id));
  if (absl::IsNotFound(row.status())) return absl::OkStatus();
  if (!row.ok()) return row.status();
  const std::string payload = keys::Payload(keys::Owner::kRecord, job, NumberOf(id));
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Delete(family(kRounds), keys::Record(job, NumberOf(id))), what));
  if (!row->bulk()) TRIB_RETURN_IF_ERROR(FromRocksDb(batch.DeleteRange(family(kRounds), payload, keys::PrefixEnd(payload)), what));
  TRIB_RETURN_IF_ERROR(Write(batch, /*synced=*/true, what, options_.min_free_bytes / 2));
  if (row->bulk()) TRIB_LOG_IF_ERROR(payloads_->DropBulk(payload, what));
  return absl::OkStatus();
}

}  // namespace tributary::aggregator
