// Versions, their strategy state, and the journalled partial: everything that carries tensors.
#include <cstring>
#include <limits>
#include <utility>

#include "aggregator/state/rocks_store.h"
#include "common/clock.h"
#include "common/crash_points.h"
#include "common/digest.h"
#include "common/log.h"

namespace tributary::aggregator {
namespace {

std::span<const std::byte> BytesOf(const std::vector<double>& values) { return std::as_bytes(std::span(values)); }

}  // namespace

RocksStateStore::JobTurn::JobTurn(RocksStateStore& store, std::string job) : store_(store), job_(std::move(job)) {
  const absl::MutexLock lock(&store_.mutex_);
  const auto free = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !store_.busy_jobs_.contains(job_); };
  store_.mutex_.Await(absl::Condition(&free));
  store_.busy_jobs_.insert(job_);
}

RocksStateStore::JobTurn::~JobTurn() {
  const absl::MutexLock lock(&store_.mutex_);
  store_.busy_jobs_.erase(job_);
}

absl::StatusOr<v1::VersionRow> RocksStateStore::LatestRow(const std::string& job) const {
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions(), family(kVersions)));
  it->SeekForPrev(keys::Version(job, std::numeric_limits<uint64_t>::max()));
  const std::string what = What(fmt::format("latest version of job '{}'", job));
  TRIB_RETURN_IF_ERROR(FromRocksDb(it->status(), what));
  if (!it->Valid() || !it->key().starts_with(keys::JobPrefix(keys::kVersion, job))) return NotFound("{}: the job has none", what);
  return DecodeRow<v1::VersionRow>(it->value().ToStringView(), what);
}

// Versions of a job rise by one and each names its parent; the first may have any number.
absl::Status RocksStateStore::CheckFollows(const v1::VersionRow& row, const std::string& job, std::string* parent_sha256) const {
  const uint64_t version = row.info().version();
  const auto latest = LatestRow(job);
  if (absl::IsNotFound(latest.status())) return absl::OkStatus();
  if (!latest.ok()) return latest.status();
  const uint64_t last = latest->info().version();
  const std::string what = What(fmt::format("job '{}' version {}", job, version));
  if (version <= last) return AlreadyExists("{}: version {} is committed already, and versions never change", what, last);
  if (version != last + 1) return FailedPrecondition("{}: expected version {}", what, last + 1);
  if (!row.info().parent_sha256().empty() && row.info().parent_sha256() != latest->info().sha256()) {
    return FailedPrecondition("{}: names the parent {}, but version {} is {}", what, row.info().parent_sha256(), last,
                              latest->info().sha256());
  }
  *parent_sha256 = latest->info().sha256();
  return absl::OkStatus();
}

absl::Status RocksStateStore::CommitVersion(VersionCommit commit) {
  const std::string job = commit.job.id();
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(job));
  v1::VersionRow& row = commit.version;
  v1::VersionInfo& info = *row.mutable_info();
  const uint64_t version = info.version();
  const std::string what = What(fmt::format("job '{}' version {}", job, version));
  if (!info.job().empty() && info.job() != job) return InvalidArgument("{}: the version row is of job '{}'", what, info.job());
  // Adopted from a store that has forgotten its tensors: a manifest alone, which the one after it follows.
  const bool pruned = info.pruned_us() != 0;
  if (!pruned && info.bytes() != 0 && info.bytes() != commit.tensors.size()) {
    return InvalidArgument("{}: expected {} bytes of tensors, got {}", what, info.bytes(), commit.tensors.size());
  }

  const JobTurn turn(*this, job);
  std::string parent_sha256;
  TRIB_RETURN_IF_ERROR(CheckFollows(row, job, &parent_sha256));
  // The last line of "counted once": whoever asks to count an update again is wrong.
  for (const auto& [id, update] : commit.updates) {
    const auto counted = GetUpdate(job, id);
    if (counted.ok()) return AlreadyExists("{}: update {} is counted in version {}", what, ToHex(id), counted->version());
    if (!absl::IsNotFound(counted.status())) return counted.status();
  }

  info.set_job(job);
  if (pruned && (info.sha256().empty() || !commit.tensors.empty())) return InvalidArgument("{}: pruned, expected its SHA-256 and no tensors", what);
  if (!pruned) info.set_bytes(commit.tensors.size());
  info.set_parent_sha256(parent_sha256);
  info.set_epoch(epoch_);
  if (info.committed_us() == 0) info.set_committed_us(WallMicros());
  info.clear_layout();
  Pieces pieces = {commit.tensors};
  info.clear_strategy_state();
  row.clear_vectors();
  Xxh3 digest;
  for (const NamedVector& vector : commit.strategy_state) {
    info.add_strategy_state(vector.name);
    v1::StrategyVector& stored = *row.add_vectors();
    stored.set_name(vector.name);
    stored.set_elements(vector.values.size());
    pieces.push_back(BytesOf(vector.values));
    digest.Update(pieces.back());
  }
  if (!commit.strategy_state.empty()) row.set_vectors_xxh3_128(digest.Digest());
  row.set_shard_bytes(kShardBytes);
  row.set_shards(static_cast<uint32_t>(ShardsOf(info.bytes(), kShardBytes)));
  const uint64_t bytes = TotalBytes(pieces);
  row.set_bulk(bytes > kInlineBytes);
  uint64_t of_clients = 0;
  for (const auto& [client, values] : commit.client_vectors) of_clients += values.size();

  TRIB_RETURN_IF_ERROR(HasRoomFor(bytes + of_clients));
  const std::string payload = keys::Payload(keys::Owner::kVersion, job, version);
  rocksdb::WriteBatch batch;
  if (row.bulk()) {
    TRIB_RETURN_IF_ERROR(payloads_->DropBulk(payload, what));   // of an attempt that failed
    TRIB_RETURN_IF_ERROR(payloads_->WriteBulk(payload, pieces, what));
  } else {
    TRIB_RETURN_IF_ERROR(PayloadStore::AppendInline(batch, family(kVersions), payload, pieces, what));
  }
  TRIB_CRASH_POINT(commit_after_shards);

  if (commit.sha256) {
    info.set_sha256(commit.sha256());
  } else if (info.sha256().empty()) {
    info.set_sha256(Sha256Hex(commit.tensors));
  }
  const auto put = [&](Family index, const std::string& key, const std::string& value) {
    return FromRocksDb(batch.Put(family(index), key, value), what);
  };
  TRIB_RETURN_IF_ERROR(put(kVersions, keys::Version(job, version), EncodeRow(row)));
  TRIB_RETURN_IF_ERROR(put(kJobs, keys::Row(keys::kJob, job), EncodeRow(std::move(commit.job))));
  for (auto& [id, update] : commit.updates) {
    if (update.version() == 0) update.set_version(version);
    TRIB_RETURN_IF_ERROR(put(kUpdates, keys::Update(job, id), EncodeRow(std::move(update))));
  }
  for (v1::ClientStateRow& state : commit.client_state) {
    const std::string key = keys::OfClient(keys::kClientState, job, state.participation().client());
    TRIB_RETURN_IF_ERROR(put(kStrategyState, key, EncodeRow(std::move(state))));
  }
  for (const auto& [client, values] : commit.client_vectors) {
    v1::ClientVectorRow vector;
    vector.set_version(version);
    vector.set_values(values.data(), values.size());
    vector.set_xxh3_128(Xxh3Digest(values));
    TRIB_RETURN_IF_ERROR(put(kStrategyState, keys::OfClient(keys::kClientVector, job, client), EncodeRow(std::move(vector))));
  }
  for (v1::EventRow& event : commit.events) {
    TRIB_RETURN_IF_ERROR(put(kEvents, keys::Event(job, NextEvent(job)), EncodeRow(std::move(event))));
  }
  const std::string partial_key = keys::Row(keys::kPartial, job);
  const auto partial = GetRow<v1::PartialRow>(kRounds, partial_key, fmt::format("partial of job '{}'", job));
  std::string partial_payload;
  if (!absl::IsNotFound(partial.status())) {
    TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Delete(family(kRounds), partial_key), what));
  }
  if (partial.ok()) {
    partial_payload = keys::Payload(keys::Owner::kPartial, job, partial->generation());
    if (!partial->bulk()) {
      TRIB_RETURN_IF_ERROR(FromRocksDb(
          batch.DeleteRange(family(kRounds), partial_payload, keys::PrefixEnd(partial_payload)), what));
    }
  }
  TRIB_CRASH_POINT(commit_before_sync);
  TRIB_RETURN_IF_ERROR(Write(batch, /*synced=*/true, what));
  TRIB_CRASH_POINT(commit_after_sync);
  // Committed. What follows only frees space; a failure leaves an orphan for the next open.
  if (partial.ok() && partial->bulk()) TRIB_LOG_IF_ERROR(payloads_->DropBulk(partial_payload, what));
  return absl::OkStatus();
}

absl::StatusOr<v1::VersionRow> RocksStateStore::GetVersion(const std::string& job, uint64_t version) const {
  return GetRow<v1::VersionRow>(kVersions, keys::Version(job, version), fmt::format("job '{}' version {}", job, version));
}

absl::StatusOr<uint64_t> RocksStateStore::LatestVersion(const std::string& job) const {
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, LatestRow(job));
  return row.info().version();
}

absl::StatusOr<uint64_t> RocksStateStore::FirstVersion(const std::string& job) const {
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions(), family(kVersions)));
  it->Seek(keys::JobPrefix(keys::kVersion, job));
  const std::string what = What(fmt::format("first version of job '{}'", job));
  TRIB_RETURN_IF_ERROR(FromRocksDb(it->status(), what));
  const auto parsed = it->Valid() ? keys::ParseVersion(it->key().ToStringView()) : std::nullopt;
  if (!parsed || parsed->first != job) return NotFound("{}: the job has none", what);
  return parsed->second;
}

absl::StatusOr<std::vector<v1::VersionRow>> RocksStateStore::ListVersions(const std::string& job) const {
  std::vector<v1::VersionRow> rows;
  TRIB_RETURN_IF_ERROR(Scan(kVersions, keys::JobPrefix(keys::kVersion, job), [&](std::string_view key, std::string_view value) -> absl::Status {
    const auto parsed = keys::ParseVersion(key);
    const std::string what = What(fmt::format("job '{}' version {}", job, parsed ? parsed->second : 0));
    TRIB_ASSIGN_OR_RETURN(v1::VersionRow row, DecodeRow<v1::VersionRow>(value, what));
    rows.push_back(std::move(row));
    return absl::OkStatus();
  }));
  return rows;
}

absl::Status RocksStateStore::ReadTensors(const std::string& job, uint64_t version, std::span<std::byte> out, bool verify) const {
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, GetVersion(job, version));
  TRIB_RETURN_IF_ERROR(CheckNotPruned(job, row));
  const std::string what = What(fmt::format("job '{}' version {}", job, version));
  if (out.size() != row.info().bytes()) {
    return InvalidArgument("{}: has {} bytes of tensors, the buffer {}", what, row.info().bytes(), out.size());
  }
  std::optional<Sha256> sha256;
  if (verify) sha256.emplace();
  size_t done = 0;
  TRIB_RETURN_IF_ERROR(payloads_->ReadPiece(family(kVersions), row.bulk(), keys::Payload(keys::Owner::kVersion, job, version), 0,
                                            row.info().bytes(), row.shard_bytes(), what, [&](std::span<const std::byte> shard) {
                                              std::memcpy(out.data() + done, shard.data(), shard.size());
                                              if (sha256) sha256->Update(shard);
                                              done += shard.size();
                                              return absl::OkStatus();
                                            }));
  if (!sha256) return absl::OkStatus();
  const std::string got = sha256->HexDigest();
  if (got != row.info().sha256()) return DataLoss("{}: expected SHA-256 {}, got {}", what, row.info().sha256(), got);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<NamedVector>> RocksStateStore::ReadStrategyState(const std::string& job, uint64_t version) const {
  TRIB_ASSIGN_OR_RETURN(const v1::VersionRow row, GetVersion(job, version));
  TRIB_RETURN_IF_ERROR(CheckNotPruned(job, row));
  const std::string what = What(fmt::format("job '{}' version {} strategy state", job, version));
  const std::string payload = keys::Payload(keys::Owner::kVersion, job, version);
  std::vector<NamedVector> vectors;
  Xxh3 digest;
  for (const v1::StrategyVector& stored : row.vectors()) {
    NamedVector vector{.name = stored.name(), .values = {}};
    // Grows with what is really there, so that a damaged row cannot ask for more memory than the store has bytes.
    std::vector<std::byte> bytes;
    const auto piece = static_cast<uint16_t>(vectors.size() + 1);
    TRIB_RETURN_IF_ERROR(payloads_->ReadPiece(family(kVersions), row.bulk(), payload, piece, stored.elements() * 8, row.shard_bytes(),
                                              what, [&](std::span<const std::byte> shard) {
                                                digest.Update(shard);
                                                bytes.insert(bytes.end(), shard.begin(), shard.end());
                                                return absl::OkStatus();
                                              }));
    vector.values.resize(bytes.size() / 8);
    if (!bytes.empty()) std::memcpy(vector.values.data(), bytes.data(), bytes.size());
    vectors.push_back(std::move(vector));
  }
  if (!vectors.empty() && digest.Digest() != row.vectors_xxh3_128()) return DataLoss("{}: the digest does not match", what);
  return vectors;
}

absl::StatusOr<std::vector<v1::ClientStateRow>> RocksStateStore::ListClientState(const std::string& job) const {
  std::vector<v1::ClientStateRow> rows;
  const std::string prefix = keys::JobPrefix(keys::kClientState, job);
  TRIB_RETURN_IF_ERROR(Scan(kStrategyState, prefix, [&](std::string_view key, std::string_view value) -> absl::Status {
    const std::string what = What(fmt::format("job '{}' client '{}'", job, key.substr(prefix.size())));
    TRIB_ASSIGN_OR_RETURN(v1::ClientStateRow row, DecodeRow<v1::ClientStateRow>(value, what));
    rows.push_back(std::move(row));
    return absl::OkStatus();
  }));
  return rows;
}

absl::StatusOr<std::vector<std::byte>> RocksStateStore::GetClientVector(const std::string& job, const std::string& client, uint64_t epoch) const {
  const std::string object = fmt::format("job '{}' row of client '{}'", job, client);
  TRIB_ASSIGN_OR_RETURN(const v1::ClientVectorRow row,
                        GetRow<v1::ClientVectorRow>(kStrategyState, keys::OfClient(keys::kClientVector, job, client), object));
  if (row.version() <= epoch) return NotFound("{}: it is of version {}, before all began anew after version {}", What(object), row.version(), epoch);
  const std::span<const std::byte> values = std::as_bytes(std::span(row.values().data(), row.values().size()));
  if (Xxh3Digest(values) != row.xxh3_128()) return DataLoss("{}: the digest does not match", What(object));
  return std::vector<std::byte>(values.begin(), values.end());
}

absl::Status RocksStateStore::PutPartial(const std::string& job, v1::PartialRow row, std::span<const std::byte> sums) {
  TRIB_RETURN_IF_ERROR(keys::ValidateJobId(job));
  const std::string what = What(fmt::format("partial of job '{}' for version {}", job, row.version()));
  const JobTurn turn(*this, job);
  const std::string key = keys::Row(keys::kPartial, job);
  const auto old = GetRow<v1::PartialRow>(kRounds, key, fmt::format("partial of job '{}'", job));
  if (!old.ok() && !absl::IsNotFound(old.status())) return old.status();

  // Never used before, over all opens: a left-over of another generation cannot be mistaken for this one.
  const uint64_t generation = epoch_ << 32 | next_generation_.fetch_add(1);
  row.set_generation(generation);
  row.set_sums_bytes(sums.size());
  row.set_sums_xxh3_128(Xxh3Digest(sums));
  row.set_shard_bytes(kShardBytes);
  row.set_shards(static_cast<uint32_t>(ShardsOf(sums.size(), kShardBytes)));
  row.set_bulk(sums.size() > kInlineBytes);
  TRIB_RETURN_IF_ERROR(HasRoomFor(sums.size()));
  const std::string payload = keys::Payload(keys::Owner::kPartial, job, generation);
  rocksdb::WriteBatch batch;
  if (row.bulk()) {
    TRIB_RETURN_IF_ERROR(payloads_->WriteBulk(payload, {sums}, what));
  } else {
    TRIB_RETURN_IF_ERROR(PayloadStore::AppendInline(batch, family(kRounds), payload, {sums}, what));
  }
  TRIB_RETURN_IF_ERROR(FromRocksDb(batch.Put(family(kRounds), key, EncodeRow(std::move(row))), what));
  std::string old_payload;
  if (old.ok()) {
    old_payload = keys::Payload(keys::Owner::kPartial, job, old->generation());
    if (!old->bulk()) {
      TRIB_RETURN_IF_ERROR(FromRocksDb(batch.DeleteRange(family(kRounds), old_payload, keys::PrefixEnd(old_payload)), what));
    }
  }
  TRIB_CRASH_POINT(journal_before_sync);
  TRIB_RETURN_IF_ERROR(Write(batch, /*synced=*/true, what));
  TRIB_CRASH_POINT(journal_after_sync);
  if (old.ok() && old->bulk()) TRIB_LOG_IF_ERROR(payloads_->DropBulk(old_payload, what));
  return absl::OkStatus();
}

absl::StatusOr<StateStore::StoredPartial> RocksStateStore::GetPartial(const std::string& job) const {
  const std::string object = fmt::format("partial of job '{}'", job);
  StoredPartial partial;
  TRIB_ASSIGN_OR_RETURN(partial.row, GetRow<v1::PartialRow>(kRounds, keys::Row(keys::kPartial, job), object));
  TRIB_RETURN_IF_ERROR(payloads_->ReadPiece(family(kRounds), partial.row.bulk(),
                                            keys::Payload(keys::Owner::kPartial, job, partial.row.generation()), 0,
                                            partial.row.sums_bytes(), partial.row.shard_bytes(), What(object),
                                            [&](std::span<const std::byte> shard) {
                                              partial.sums.insert(partial.sums.end(), shard.begin(), shard.end());
                                              return absl::OkStatus();
                                            }));
  if (Xxh3Digest(partial.sums) != partial.row.sums_xxh3_128()) return DataLoss("{}: the digest does not match", What(object));
  return partial;
}

}  // namespace tributary::aggregator
