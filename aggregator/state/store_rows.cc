// Jobs, artifacts, clients, metrics, events, dedupe rows.
#include <algorithm>
#include <tuple>

#include "aggregator/state/rocks_store.h"
#include "common/digest.h"

namespace tributary::aggregator {

absl::Status RocksStateStore::PutJob(const v1::JobRow& row) {
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(row.id()));
  const std::string what = What(fmt::format("job '{}'", row.id()));
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kJobs), keys::Row(keys::kJob, row.id()), EncodeRow(row)), what));
  return Write(batch, /*synced=*/true, what);
}

absl::StatusOr<v1::JobRow> RocksStateStore::GetJob(const std::string& job) const {
  return GetRow<v1::JobRow>(kJobs, keys::Row(keys::kJob, job), fmt::format("job '{}'", job));
}

absl::StatusOr<std::vector<v1::JobRow>> RocksStateStore::ListJobs() const {
  std::vector<v1::JobRow> rows;
  TRIB_RETURN_IF_ERROR(Scan(kJobs, std::string(1, keys::kJob), [&](std::string_view key, std::string_view value) -> absl::Status {
    const std::string id(key.substr(1, key.size() < 2 ? 0 : key.size() - 2));
    TRIB_ASSIGN_OR_RETURN(v1::JobRow row, DecodeRow<v1::JobRow>(value, What(fmt::format("job '{}'", id))));
    rows.push_back(std::move(row));
    return absl::OkStatus();
  }));
  std::ranges::sort(rows, [](const v1::JobRow& a, const v1::JobRow& b) {
    return std::forward_as_tuple(a.submitted_us(), a.id()) < std::forward_as_tuple(b.submitted_us(), b.id());
  });
  return rows;
}

absl::Status RocksStateStore::PutArtifact(const std::string& job, std::string_view bytes) {
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(job));
  const std::string what = What(fmt::format("artifact of job '{}'", job));
  const std::span<const std::byte> content = std::as_bytes(std::span(bytes.data(), bytes.size()));
  v1::ArtifactRow row;
  row.set_sha256(Sha256Hex(content));
  const JobTurn turn(*this, job);
  const auto old = GetRow<v1::ArtifactRow>(kJobs, keys::Row(keys::kArtifact, job), fmt::format("artifact of job '{}'", job));
  if (old.ok()) {
    if (old->sha256() == row.sha256()) return absl::OkStatus();
    return AlreadyExists("{}: has SHA-256 {}, and another one ({}) came", what, old->sha256(), row.sha256());
  }
  if (!absl::IsNotFound(old.status())) return old.status();
  row.set_bytes(bytes.size());
  row.set_shard_bytes(kShardBytes);
  row.set_shards(static_cast<uint32_t>(ShardsOf(bytes.size(), kShardBytes)));
  row.set_bulk(bytes.size() > kInlineBytes);
  const std::string payload = keys::Payload(keys::Owner::kArtifact, job, 0);
  TRIB_RETURN_IF_ERROR(HasRoomFor(bytes.size()));
  rocksdb::WriteBatch batch;
  if (row.bulk()) {
    TRIB_RETURN_IF_ERROR(payloads_->DropBulk(payload, what));   // of an attempt that failed
    TRIB_RETURN_IF_ERROR(payloads_->WriteBulk(payload, {content}, what));
  } else {
    TRIB_RETURN_IF_ERROR(PayloadStore::AppendInline(batch, family(kJobs), payload, {content}, what));
  }
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kJobs), keys::Row(keys::kArtifact, job), EncodeRow(row)), what));
  return Write(batch, /*synced=*/true, what);
}

absl::StatusOr<std::string> RocksStateStore::GetArtifact(const std::string& job) const {
  const std::string object = fmt::format("artifact of job '{}'", job);
  TRIB_ASSIGN_OR_RETURN(const auto row, GetRow<v1::ArtifactRow>(kJobs, keys::Row(keys::kArtifact, job), object));
  std::string bytes;
  TRIB_RETURN_IF_ERROR(payloads_->ReadPiece(family(kJobs), row.bulk(), keys::Payload(keys::Owner::kArtifact, job, 0), 0, row.bytes(),
                                            row.shard_bytes(), What(object), [&](std::span<const std::byte> shard) {
                                              bytes.append(reinterpret_cast<const char*>(shard.data()), shard.size());
                                              return absl::OkStatus();
                                            }));
  const std::string sha256 = Sha256Hex(std::as_bytes(std::span(bytes)));
  if (sha256 != row.sha256()) return DataLoss("{}: expected SHA-256 {}, got {}", What(object), row.sha256(), sha256);
  return bytes;
}

absl::StatusOr<v1::UpdateRow> RocksStateStore::GetUpdate(const std::string& job, const UpdateId& update) const {
  return GetRow<v1::UpdateRow>(kUpdates, keys::Update(job, update), fmt::format("job '{}' update {}", job, ToHex(update)));
}

absl::Status RocksStateStore::PutMetric(const std::string& job, const v1::Metric& metric) {
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(job));
  const std::string what = What(fmt::format("metric of job '{}' version {}", job, metric.version()));
  v1::MetricRow row;
  *row.mutable_metric() = metric;
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(
      FromRocksDb(batch.Put(family(kRounds), keys::Metric(job, metric.version(), metric.evaluator()), EncodeRow(row)), what));
  return Write(batch, /*synced=*/false, what);
}

absl::StatusOr<std::vector<v1::Metric>> RocksStateStore::ListMetrics(const std::string& job) const {
  std::vector<v1::Metric> metrics;
  const std::string what = What(fmt::format("metric of job '{}'", job));
  TRIB_RETURN_IF_ERROR(Scan(kRounds, keys::JobPrefix(keys::kMetric, job), [&](std::string_view, std::string_view value) -> absl::Status {
    TRIB_ASSIGN_OR_RETURN(v1::MetricRow row, DecodeRow<v1::MetricRow>(value, what));
    metrics.push_back(std::move(*row.mutable_metric()));
    return absl::OkStatus();
  }));
  return metrics;
}

uint64_t RocksStateStore::NextEvent(const std::string& job) {
  {
    const absl::MutexLock lock(&mutex_);
    const auto known = next_event_.find(job);
    if (known != next_event_.end()) return known->second++;
  }
  const std::string prefix = keys::JobPrefix(std::nullopt, job);
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions(), family(kEvents)));
  it->SeekForPrev(keys::PrefixEnd(prefix));
  uint64_t next = 0;
  if (it->Valid()) {
    const auto last = keys::ParseEvent(it->key().ToStringView());
    if (last && last->first == job) next = last->second + 1;
  }
  const absl::MutexLock lock(&mutex_);
  // Another thread may have looked it up meanwhile: then its count goes on.
  return next_event_.emplace(job, next).first->second++;
}

absl::Status RocksStateStore::AppendEvent(const std::string& job, const v1::EventRow& event) {
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(job));
  const std::string what = What(fmt::format("event of job '{}'", job));
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kEvents), keys::Event(job, NextEvent(job)), EncodeRow(event)), what));
  return Write(batch, /*synced=*/false, what);
}

absl::StatusOr<std::vector<v1::EventRow>> RocksStateStore::ListEvents(const std::string& job, size_t most) const {
  const std::string what = What(fmt::format("event of job '{}'", job));
  const std::string prefix = keys::JobPrefix(std::nullopt, job);
  std::vector<v1::EventRow> events;
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions(), family(kEvents)));
  for (it->SeekForPrev(keys::PrefixEnd(prefix)); it->Valid() && events.size() < most; it->Prev()) {
    if (!it->key().starts_with(prefix)) break;
    TRIB_ASSIGN_OR_RETURN(v1::EventRow row, DecodeRow<v1::EventRow>(it->value().ToStringView(), what));
    events.push_back(std::move(row));
  }
  TRIB_RETURN_IF_ERROR(FromRocksDb(it->status(), what));
  std::ranges::reverse(events);
  return events;
}

absl::Status RocksStateStore::PutClient(const v1::ClientRow& row, bool synced) {
  if (row.id().empty() || row.id().size() > 256) {
    return InvalidArgument("client id: expected 1 to 256 bytes, got {}", row.id().size());
  }
  const std::string what = What(fmt::format("client '{}'", row.id()));
  rocksdb::WriteBatch batch;
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kClients), row.id(), EncodeRow(row)), what));
  return Write(batch, synced, what);
}

absl::StatusOr<v1::ClientRow> RocksStateStore::GetClient(const std::string& id) const {
  return GetRow<v1::ClientRow>(kClients, id, fmt::format("client '{}'", id));
}

absl::StatusOr<std::vector<v1::ClientRow>> RocksStateStore::ListClients() const {
  std::vector<v1::ClientRow> rows;
  TRIB_RETURN_IF_ERROR(Scan(kClients, "", [&](std::string_view key, std::string_view value) -> absl::Status {
    TRIB_ASSIGN_OR_RETURN(v1::ClientRow row, DecodeRow<v1::ClientRow>(value, What(fmt::format("client '{}'", std::string(key)))));
    rows.push_back(std::move(row));
    return absl::OkStatus();
  }));
  return rows;
}

}  // namespace tributary::aggregator
